"""The table of bad commands: each ends with its status and one line, in time and with little memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.commands import Command, commands, faults, make_places, run
from tests.tiny import TinyRun

COMMANDS = commands()
FEW = [row for row in COMMANDS if "{run}" not in row.line][5::17]
"""Some of what needs no trained network."""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    return make_places(tmp_path)


def check(rows: Sequence[Command], places: dict[str, Path]) -> None:
    found = []
    for row in rows:
        outcome = run(row.line, places)
        found += [f"dynpix {row.line}: {fault}: {outcome.err[-300:]}" for fault in faults(row, outcome)]
    assert not found, "\n".join(found)


def test_the_table_is_long() -> None:
    assert len({row.line for row in COMMANDS}) == len(COMMANDS) >= 400


def test_a_part_of_the_table(places: dict[str, Path]) -> None:
    check(FEW, places)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(9))
def test_all_of_the_table(places: dict[str, Path], tiny_run: TinyRun, part: int) -> None:
    check(COMMANDS[part::9], {**places, "run": tiny_run.workdir})
