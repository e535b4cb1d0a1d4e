"""docs/extending.md: the code that it shows is that of tests/extending, and its commands print what it says.

`python tests/test_docs.py` writes the files into the page.
"""

from __future__ import annotations

import os
import re
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


@pytest.mark.parametrize(("commands", "printed"), sections(PAGE.read_text()))
def test_commands(commands, printed, tmp_path):
    for file in FILES.glob("my_*.py"):
        shutil.copy(file, tmp_path)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


if __name__ == "__main__":
    PAGE.write_text(with_files(PAGE.read_text()))
