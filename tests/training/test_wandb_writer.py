"""What Weights & Biases is given, by a module in its place."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.training import loop, writers
from dynpix_jax.training.wandb_writer import WandbWriter
from tests.training import toy

PICTURE = np.zeros((2, 3, 3), np.uint8)


class Run:
    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, list[dict[str, Any]](), False
        self.metrics = dict[str, str]()

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        if values["step"] == 13:
            raise sys.modules["wandb"].Error("no network")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Those that the module in the place of wandb has begun."""
    found: list[Run] = []
    fake: Any = types.ModuleType("wandb")
    fake.Error = type("Error", (Exception,), {})
    fake.Image = lambda picture: ("picture", picture.shape)

    def init(**options: Any) -> Run:
        if options["project"] == "nobody":
            raise fake.Error("not logged in;\n  run wandb login")
        found.append(Run(**options))
        return found[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return found


def make(project: str, workdir: Path) -> writers.Writer:
    return WandbWriter(project, workdir, {"seed": 0})


def test_numbers_names_and_pictures(
    tmp_path: Path, runs: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    writer = writers.Writers([make("team/pixels", tmp_path)])
    writer.write(4, "eval", {"stage": "base", "miou": 0.5, "segmentation/0": PICTURE})
    writer.write(13, "train", {"loss": 1.0})
    writer.write(14, "train", {"loss": 1.0})
    writer.close()
    (run,) = runs
    first = {"step": 4, "eval/stage": "base", "eval/miou": 0.5, "eval/segmentation/0": ("picture", (2, 3, 3))}
    assert run.logged == [first, {"step": 14, "train/loss": 1.0}]
    assert run.finished
    assert run.metrics == {"*": "step"}
    assert (run.options["entity"], run.options["project"], run.options["config"]) == (
        "team",
        "pixels",
        {"seed": 0},
    )
    assert "no network; the run goes on" in caplog.text
    # A run that continues is the same run there.
    make("team/pixels", tmp_path)
    assert runs[1].options["id"] == run.options["id"] != ""
    assert runs[1].options["resume"] == "allow"


def test_who_is_not_logged_in_is_told(tmp_path: Path, runs: list[Run]) -> None:
    with pytest.raises(UserError, match=r"config\.training\.wandb: nobody: not logged in; run wandb login$"):
        make("nobody", tmp_path)


def test_the_setting_brings_the_writer(tmp_path: Path, runs: list[Run]) -> None:
    run = toy.run(wandb="pixels")
    first, *usual = loop._usual_writers(tmp_path, run, None)
    assert type(first).__name__ == "WandbWriter"
    assert runs[0].options["entity"] is None
    assert len(usual) == len(loop._usual_writers(tmp_path, toy.run(), None))
