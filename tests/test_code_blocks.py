"""Every code block of the docs, README and the papers' pages is executed, or says what it needs.

A block that cannot run here stands below `<!-- needs: WHAT -->`; commands that are only indented
tell how a number was measured. Both are checked: the commands and their options are there. docs/extending.md
and docs/own-data.md are executed by tests of their own.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dynpix_jax.cli.main import COMMANDS, main, make_parser
from dynpix_jax.core.configs import load_config
from dynpix_jax.core.errors import UserError
from dynpix_jax.data.scenes import Scenes, ScenesConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "dynpix_jax").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
PHOTO = "<!-- needs: photo.jpg -->"
"""Above a block that is executed beside a photo of that name; the networks that ship are at hand."""
ELSEWHERE = {"extending.md": "tests/test_docs.py", "own-data.md": "tests/test_own_data.py"}
BLOCK = re.compile(r"(<!-- (?:needs|file)[^>]*-->\n\n)?^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(needs.strip(), language, text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if page.name not in ELSEWHERE
    for number, (needs, _, language, text) in enumerate(BLOCK.findall(page.read_text()), 1)
    if language in ("python", "sh")
]
# A command that is only indented, with the lines that it goes on in.
INDENTED = re.compile(r"^    ((?:dynpix|python|make) (?:.*\\\n)*.*)$", re.MULTILINE)
FENCED = re.compile(r"^( *)```.*?^ *```$", re.MULTILINE | re.DOTALL)
MEASURED = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, command in enumerate(INDENTED.findall(FENCED.sub("", page.read_text())), 1)
]


def test_blocks_are_found():
    assert len(BLOCKS) > 10
    assert len(MEASURED) > 40
    with_photo = {page.name for page in PAGES if f"{PHOTO}\n\n```" in page.read_text()}
    assert with_photo == {"README.md", "quickstart.md", "predict.md"}
    for name, test in ELSEWHERE.items():
        assert name in (ROOT / test).read_text()


@pytest.mark.parametrize(("needs", "language", "text"), BLOCKS)
def test_a_block_runs_or_says_what_it_needs(needs, language, text, tmp_path, monkeypatch):
    """One that needs something is at least Python, or commands that there are with options that there are."""
    monkeypatch.chdir(tmp_path)
    if needs == PHOTO:
        room = Scenes(ScenesConfig(size=(64, 96), length=1), "val")[0]["image"]
        Image.fromarray(room).save(tmp_path / "photo.jpg")
        needs = ""
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


@pytest.mark.parametrize("command", MEASURED)
def test_a_command_that_measured_is_there(command):
    check_measured(command)


@pytest.mark.parametrize(
    "command",
    [
        "dynpix benchmark model",
        "dynpix bench models --size 480x640",
        "dynpix bench model \\\n        --sizes 480x640",
        "dynpix bench model --config=configs/pag/never.py",
        "dynpix import-weights --config pag/nyuv2.py:never=1 --source a.mat --out b.safetensors",
        "python evaluate.py --workdir runs",
        "python eval.py --work runs",
        "python -m tools.never",
        "make never",
    ],
)
def test_a_wrong_command_is_found(command):
    (found,) = INDENTED.findall(f"Text:\n\n    {command}\n\nMore text.\n")
    assert found == command
    with pytest.raises((AssertionError, UserError)):
        check_measured(found)


def check_measured(command: str) -> None:
    """A command with options that it has, and with files, modules and targets that there are."""
    program, *words = shlex.split(command.replace("\\\n", " "), comments=True)
    if program == "make":
        assert re.search(rf"^{re.escape(words[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words[0]
    elif program == "python" and words[0] == "-m":
        assert ROOT.joinpath(*words[1].split(".")).with_suffix(".py").is_file(), words[1]
    elif program == "python":
        assert (ROOT / words[0]).is_file(), words[0]
        check([Path(words[0]).stem, *words[1:]])  # train.py is `dynpix train`
    else:
        check(words)


def check(words: list[str]) -> None:
    """A command of ours with options that it has, and a config that takes its arguments."""
    assert words[0] in COMMANDS, words[0]
    parser, _ = make_parser(words[0])
    known: set[str] = set()
    for depth in itertools.count():  # `dynpix config show` has options of its own
        known |= {option for action in parser._actions for option in action.option_strings}
        inner = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), None)
        if inner is None:
            break
        assert words[depth] in inner, words[depth]
        parser = inner[words[depth]]
    for word in words[1:]:
        if word.startswith("--") and not word.startswith("--config."):
            assert word.partition("=")[0] in known, word
    for word, following in itertools.pairwise([*words, ""]):
        if word.startswith("--config="):
            check_config(word.removeprefix("--config="))
        elif word == "--config":
            check_config(following)


def check_config(spec: str) -> None:
    """A config of ours, with arguments that it has."""
    file = spec.partition(":")[0]
    found = [folder for folder in (ROOT, ROOT / "configs") if (folder / file).is_file()]
    assert found, spec
    load_config(f"{found[0]}/{spec}")
