"""Pages of the site that stand elsewhere: the front page, the papers' pages, the reference of every module.

A hook of mkdocs (mkdocs.yml). Links between pages are rewritten to where the pages stand on the site; a link
to a file that is no page becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dynpix_jax"
HOW_TO = (
    "own-data.md",
    "predict.md",
    "data.md",
    "weights.md",
    "extending.md",
    "accelerators.md",
    "pods.md",
    "faults.md",
)
UNDERSTAND = ("concepts.md", "sparse-execution.md", "results.md", "architecture.md")
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def modules() -> list[str]:
    """All modules whose names are public, such as "dynpix_jax.ops.conv"."""
    found = []
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(name.startswith("_") for name in names):
            found.append(".".join(names))
    return found


def page_of(module: str) -> str:
    """Where a module's page stands on the site."""
    return f"reference/{module}.md"


def papers() -> list[str]:
    """Names of the papers' folders."""
    return sorted(file.parent.name for file in (ROOT / PACKAGE / "papers").glob("*/README.md"))


def pages() -> dict[str, Path]:
    """Pages that are files outside of docs: place on the site -> file."""
    found = {"index.md": ROOT / "README.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
    return found | {f"papers/{name}.md": ROOT / PACKAGE / "papers" / name / "README.md" for name in papers()}


def relinked(text: str, source: Path, page: str) -> str:
    """The text of a file as the text of a page.

    Args:
        text: Markdown.
        source: Its file, which the links are relative to.
        page: Its place on the site.
    """
    places = {file: place for place, file in pages().items()}
    folder = posixpath.dirname(page) or "."

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], (source.parent / match[2]).resolve(), match[3] or ""
        place = places.get(target)
        if place is None and target.is_relative_to(ROOT / "docs") and target.is_file():
            place = target.relative_to(ROOT / "docs").as_posix()
        return f"[{words}]({posixpath.relpath(place, folder)}{anchor})" if place else words

    return LINK.sub(link, text)


def on_config(config: Any) -> Any:
    """The site's menu."""
    by_folder: dict[str, list[dict[str, str]]] = {}
    for module in modules():
        folder = module.split(".")[1] if "." in module else PACKAGE
        by_folder.setdefault(folder, []).append({module.removeprefix(f"{PACKAGE}."): page_of(module)})
    config.nav = [
        {"Home": "index.md"},
        "quickstart.md",
        {"Understand": list(UNDERSTAND)},
        {"How to": list(HOW_TO)},
        {"Papers": [f"papers/{name}.md" for name in papers()]},
        {"Reference": [{folder: entries} for folder, entries in by_folder.items()]},
        {"Contribute": "contributing.md"},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are no files in docs."""
    for page, content in made():
        files.append(File.generated(config, page, content=content))
    return files


def made() -> Iterator[tuple[str, str]]:
    """(place, Markdown) of the pages that are no files in docs."""
    for page, source in pages().items():
        yield page, relinked(source.read_text(encoding="utf-8"), source, page)
    for module in modules():
        yield page_of(module), f"# {module}\n\n::: {module}\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the pages in docs to what is outside of it."""
    source = ROOT / "docs" / page.file.src_uri
    return relinked(markdown, source, page.file.src_uri) if source.is_file() else markdown
