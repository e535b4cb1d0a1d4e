"""What the papers' READMEs and the docs say is there: names, configs, files, equations, links."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from dynpix_jax.core.configs import load_config

ROOT = Path(__file__).resolve().parents[2]
WINGS = sorted(path.parent for path in (ROOT / "dynpix_jax/papers").glob("*/config.py"))
READMES = [wing / "README.md" for wing in WINGS]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*READMES, *DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
EQUATIONS = {"anytime": 4, "astmt": 1, "mdeq": 0, "pag": 11, "perspective": 1, "pixelnet": 0}
"""Numbered equations of each paper."""

NAME = re.compile(r"`(dynpix_jax(?:\.\w+)+)(?:\([^`]*\))?`")
CONFIG = re.compile(r"`(configs/[\w/]+\.py(?::[^\s`]+)?)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
SECTIONS = (
    "How to read this folder",
    "From the paper to the code",
    "Variants",
    "Results",
    "Departures of our recipes",
)


def named(pages: list[Path], pattern: re.Pattern[str]) -> list[Any]:
    """What a pattern finds, once a page, as parameters of a test."""
    return [
        pytest.param(page, name, id=f"{page.relative_to(ROOT)}-{name}")
        for page in pages
        for name in sorted(set(pattern.findall(page.read_text())))
    ]


def resolve(name: str) -> Any:
    """The object of a dotted name: the longest prefix is a module, the rest are attributes.

    Raises:
        LookupError: There is none.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not name.startswith(f"{error.name}"):
                raise
            continue
        for part in parts[length:]:
            if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", ()):
                raise LookupError(f"{name}: {found} has no {part!r}")
            found = getattr(found, part, None)
        return found
    raise LookupError(f"{name}: there is no such module")


def test_every_wing_has_one():
    assert [wing.name for wing in WINGS] == sorted(EQUATIONS)
    assert all(readme.is_file() for readme in READMES)


@pytest.mark.parametrize(("page", "name"), named(PAGES, NAME))
def test_names_exist(page, name):
    resolve(name)


def test_what_does_not_exist_is_found():
    with pytest.raises(LookupError, match="no such module"):
        resolve("dynpix_jax_x.core")
    with pytest.raises(LookupError, match="has no 'Nothing'"):
        resolve("dynpix_jax.core.system.Nothing")


@pytest.mark.parametrize(("page", "name"), named(PAGES, CONFIG))
def test_configs_load(page, name):
    path, _, arg = name.partition(":")
    if path.endswith(("recipe.py", "pose.py", "datasets.py")):  # what configs share
        assert (ROOT / path).is_file()
        assert not arg
    else:
        load_config(ROOT / path if not arg else f"{ROOT / path}:{arg}")


@pytest.mark.parametrize(("page", "target"), named(PAGES, LINK))
def test_links_lead_somewhere(page, target):
    assert (page.parent / target).exists()


def sections_of(page: Path) -> dict[str, str]:
    """Anchor -> text of each section of a page."""
    sections = re.split(r"^##+ (.*)$", page.read_text(), flags=re.MULTILINE)[1:]
    return {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()): text
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }


@pytest.mark.parametrize(("page", "link"), named(PAGES, ANCHOR))
def test_anchors_are_headings(page, link):
    target, anchor = link
    assert anchor in sections_of(page.parent / target if target else page)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_results_are_those_of_the_results_page(readme):
    """Every link and the numbers up to the next one: they stand in the section that it leads to."""
    text = sections_of(readme)["results"]
    pieces = re.split(r"\[[^\]]*\]\(\.\./\.\./\.\./docs/results\.md#([^)]*)\)", text)[1:]
    found = sections_of(ROOT / "docs/results.md")
    assert pieces
    for anchor, piece in zip(pieces[::2], pieces[1::2], strict=True):
        for number in re.findall(r"\d*\.\d+|\d+(?= ms|(?= ?%))", piece):
            assert re.search(rf"(?<![\d.])0?{re.escape(number)}(?!\d)", found[anchor]), (anchor, number)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_form(readme):
    text = readme.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(SECTIONS)
    assert len(text.splitlines()) <= 120
    for number in range(1, EQUATIONS[readme.parent.name] + 1):
        assert f"eq. {number}" in text
    reading = text.split("## ")[1]
    files = set(re.findall(r"`(\w+\.(?:py|toml))`", reading))
    assert files == {path.name for path in readme.parent.glob("*.*")} - {"__init__.py", "README.md"}
