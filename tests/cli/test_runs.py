"""The stages of a run with the alternatives that are asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynpix_jax.cli.runs import add_run_arguments, run_of
from dynpix_jax.core.config import HARMLESS, HARMLESS_IN_EVALUATION, differences
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run
from dynpix_jax.serving.trained import Trained, with_alternatives
from tests.training import toy

SOFT = SimpleNamespace(alternatives={"argmax": "hard", "loop_0": "short"})
PLAIN = SimpleNamespace(alternatives={})


def run(stage: str, system: Any) -> Trained:
    return Trained(system, {"params": stage}, stage, 5, 1.0)


def test_each_stage_is_followed_by_its_alternatives():
    runs = with_alternatives([run("base", PLAIN), run("gating", SOFT)], ("argmax",))
    assert [one.title for one in runs] == ["base", "gating", "gating, argmax"]
    assert runs[2].system == "hard"
    assert runs[2].variables == {"params": "gating"}
    assert [one.stage for one in with_alternatives([run("gating", SOFT)], ("loop_0", "argmax"))] == [
        "gating"
    ] * 3
    assert with_alternatives([run("base", PLAIN)], ()) == [run("base", PLAIN)]


@pytest.mark.parametrize(
    ("system", "message"),
    [(SOFT, "has no alternative 'argmx'; did you mean 'argmax'"), (PLAIN, "no names are valid here")],
)
def test_one_that_there_is_not(system, message):
    with pytest.raises(UserError, match=message):
        with_alternatives([run("base", SOFT), run("gating", system)], ("argmx",))


def test_the_workdir_knows_its_config(tmp_path):
    run = toy.run({"scale": 2.0})
    folder = tmp_path / "checkpoints" / "00000006"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"config": run.given}))
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    arguments = [f"--workdir={tmp_path}", "--set", "evaluation.limit=3", "--implementation=gather"]
    found = run_of(parser.parse_args(arguments))
    assert found.stages == run.stages
    assert (found.evaluation.limit, found.execution.implementation) == (3, "gather")
    assert not differences(run, found)
    with pytest.raises(UserError, match="holds no checkpoint, which would hold the config"):
        run_of(parser.parse_args([f"--workdir={folder}"]))
    with pytest.raises(UserError, match="workdir not found"):
        run_of(parser.parse_args([f"--workdir={tmp_path / 'none'}"]))


@pytest.mark.parametrize(
    "change",
    ["model.compute_dtype=bfloat16", "model.compute_dtype=(('backbone', 'bfloat16'),)", "model.norm_group=2"],
)
def test_how_a_network_computes_may_differ_in_evaluation_alone(change):
    config = str(Path(__file__).resolve().parents[2] / "configs/pag/scenes.py:variant=gated")
    trained, other = read_run(config), read_run(config, [change])
    lines = differences(trained, other)
    assert lines
    assert all(line.startswith(f"config.{change.partition('=')[0]}") for line in lines)
    assert not differences(trained, other, (*HARMLESS, *HARMLESS_IN_EVALUATION))
