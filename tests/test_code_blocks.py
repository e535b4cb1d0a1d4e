"""Every code block of the docs, README and the papers' pages is executed, or says what it needs.

A block that cannot run here stands below `<!-- needs: WHAT -->`. docs/extending.md and docs/own-data.md are
executed by tests of their own.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dynpix_jax.cli.main import COMMANDS, main, make_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "dynpix_jax").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
ELSEWHERE = {"extending.md": "tests/test_docs.py", "own-data.md": "tests/test_own_data.py"}
BLOCK = re.compile(r"(<!-- (?:needs|file)[^>]*-->\n\n)?^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(bool(needs), language, text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if page.name not in ELSEWHERE
    for number, (needs, _, language, text) in enumerate(BLOCK.findall(page.read_text()), 1)
    if language in ("python", "sh")
]


def test_blocks_are_found():
    assert len(BLOCKS) > 10
    for name, test in ELSEWHERE.items():
        assert name in (ROOT / test).read_text()


@pytest.mark.parametrize(("needs", "language", "text"), BLOCKS)
def test_a_block_runs_or_says_what_it_needs(needs, language, text, tmp_path, monkeypatch):
    """One that needs something is at least Python, or commands that there are with options that there are."""
    monkeypatch.chdir(tmp_path)
    if language == "python":
        code = compile(text, "block", "exec")
        if not needs:
            exec(code, {})
        return
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "dynpix":
            assert needs, f"{shlex.join(words)}: mark the block by <!-- needs: ... -->"
        elif needs:
            check(words[1:])
        else:
            assert main(words[1:]) == 0


def check(words: list[str]) -> None:
    """A command of ours with options that it has."""
    assert words[0] in COMMANDS
    parser, _ = make_parser(words[0])
    (commands,) = (action for action in parser._actions if isinstance(action.choices, dict))
    known: set[str] = set()
    parsers = [commands.choices[words[0]]]
    for one in parsers:  # `dynpix config show` has options of its own
        known |= {option for action in one._actions for option in action.option_strings}
        parsers += [
            inner
            for action in one._actions
            if isinstance(action.choices, dict)
            for inner in action.choices.values()
        ]
    for word in words[1:]:
        if word.startswith("--") and not word.startswith("--config."):
            assert word.partition("=")[0] in known, word
