"""docs/extending.md: the code that it shows is that of tests/extending, and its commands print what it says.

`python tests/test_docs.py` writes the files into the page.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/extending.md"
FILES = ROOT / "tests/extending"

SHOWN = re.compile(r"<!-- file: (\S+) -->\n(?:\n```python\n.*?\n```\n)?", re.DOTALL)
COMMAND = re.compile(r"```sh\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)


def with_files(page: str) -> str:
    """The page with every file under its marker, as it is now."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- file: {name} -->\n\n```python\n{(ROOT / name).read_text()}```\n"

    return SHOWN.sub(block, page)


def test_files_are_shown_as_they_are():
    page = PAGE.read_text()
    shown = {Path(name).name for name in SHOWN.findall(page)}
    assert shown == {file.name for file in FILES.glob("my_*.py")}
    assert page == with_files(page), "write them into the page: python tests/test_docs.py"


def test_every_command_tells_what_it_prints():
    assert len(COMMAND.findall(PAGE.read_text())) == PAGE.read_text().count("```sh\n") >= 5


def sections(page: str) -> list[Any]:
    """(commands, what they print) of every section, as parameters of a test."""
    return [
        pytest.param(found[1], found[2], id=re.findall(r"^## (.*)$", page[: found.start()], re.MULTILINE)[-1])
        for found in COMMAND.finditer(page)
    ]


SECTIONS = sections(PAGE.read_text())


def programs(commands: str) -> list[list[str]]:
    """The words of each command, as a shell reads them."""
    assert not set("$`\\!") & set(commands), "a shell would read more into it"
    lexer = shlex.shlex(commands, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    groups = itertools.groupby(lexer, lambda word: word.strip("\n") != "")
    return [list(words) for between, words in groups if between]


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """The current folder holds the files of the page, and Python finds them there."""
    for file in FILES.glob("my_*.py"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = [file.stem for file in FILES.glob("my_*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.mark.parametrize(("commands", "printed"), SECTIONS[:-1])
def test_commands(commands, printed, user_folder, capsys):
    """Each program in this process, which has what it imports."""
    for program, *words in programs(commands):
        if program == "python":
            option, source = words
            assert option == "-c"
            exec(source, {"__name__": "__main__"})
        else:
            subprocess.run([program, *words], check=True)
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(("commands", "printed"), SECTIONS[-1:])
def test_commands_in_a_shell(commands, printed, user_folder):
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euc", commands],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


if __name__ == "__main__":
    PAGE.write_text(with_files(PAGE.read_text()))
