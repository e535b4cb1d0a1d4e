"""The site: every public module has a page, links lead to pages, and it builds without a warning."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

import dynpix_jax
from tools import site_pages

ROOT = Path(__file__).resolve().parents[2]


def test_every_public_module_has_a_page():
    """`pkgutil` finds configs through their package, too: they are no modules of the library."""
    found = {info.name for info in pkgutil.walk_packages(dynpix_jax.__path__, "dynpix_jax.")}
    public = {name for name in found if "._" not in name and not name.startswith("dynpix_jax.configs.")}
    assert public | {"dynpix_jax"} == set(site_pages.modules())
    made = dict(site_pages.made())
    assert "::: dynpix_jax.serving.predictor" in made["reference/dynpix_jax.serving.predictor.md"]


def test_every_page_of_docs_is_in_the_menu():
    menu = repr(site_pages.on_config(type("Config", (), {"nav": None})).nav)
    assert all(f"'{page.name}'" in menu for page in (ROOT / "docs").glob("*.md"))
    assert all(f"'{page}'" in menu for page, _ in site_pages.made())


def test_links_lead_to_pages():
    for page, text in site_pages.made():
        for _, target, _ in site_pages.LINK.findall(text):
            place = os.path.normpath(Path(page).parent / target)
            known = (ROOT / "docs" / place).is_file() or place in site_pages.pages()
            assert known, f"{page}: {target}"
    readme = ROOT / "README.md"
    text = "[a](docs/data.md#x), [b](dynpix_jax/papers/pag/README.md), [c](Makefile), [d](https://e.org)"
    expected = "[a](data.md#x), [b](papers/pag.md), c, [d](https://e.org)"
    assert site_pages.relinked(text, readme, "index.md") == expected


def test_badges_are_true():
    """Each that README shows is a file that says what pyproject.toml does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jax = next(found[1] for name in project["dependencies"] if (found := re.match(r"jax>=(.*)", name)))
    said = {
        "python": f"Python: >= {project['requires-python'].removeprefix('>=')}",
        "licence": f"licence: {project['license']}",
        "jax": f"JAX: >= {jax}",
    }
    shown = re.findall(r"!\[([^]]*)\]\(docs/badge-(\w+)\.svg\)", (ROOT / "README.md").read_text())
    assert {name for _, name in shown} == set(said)
    for words, name in shown:
        text = (ROOT / f"docs/badge-{name}.svg").read_text()
        picture = ElementTree.fromstring(text)
        assert (title := picture.find("{*}title")) is not None
        assert title.text == picture.get("aria-label") == said[name]
        drawn = [found.text for found in picture.iterfind(".//{*}text")]
        assert drawn == said[name].split(": ")
        assert words.split() == said[name].replace(": >=", " >=").split()
        assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (tmp_path / "reference/dynpix_jax.serving.predictor.html").read_text()
    assert "budget_ms" in page
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?://', page)
