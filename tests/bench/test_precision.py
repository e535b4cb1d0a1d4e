"""`dynpix bench precision`: two runs that differ in their dtype, and their losses side by side."""

from __future__ import annotations

import json

import pytest

from dynpix_jax.bench import precision
from dynpix_jax.cli import main
from dynpix_jax.training import loop
from tests.tiny import TINY_CONFIG


def test_two_runs_side_by_side(tmp_path, capsys, monkeypatch):
    seen = []

    def train(run, workdir, batches):
        seen.append((run.stages[0].model.compute_dtype, run.seed))
        workdir.mkdir(parents=True)
        factor = 1.0 if workdir.name == "float32" else 1.01
        lines = [
            {"step": step, "kind": "train", "stage": "base", "loss": factor * step} for step in range(1, 9)
        ]
        lines.append({"step": 8, "kind": "eval", "stage": "base"})
        (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    monkeypatch.setattr(loop, "train", train)
    config = tmp_path / "tiny.py"
    config.write_text(TINY_CONFIG)
    arguments = ["bench", "precision", f"--config={config}", f"--workdir={tmp_path / 'runs'}"]
    assert main.main([*arguments, "--set", "seed=3"]) == 0
    assert seen == [("float32", 3), ("bfloat16", 3)]
    heads, whole, last = capsys.readouterr().out.splitlines()
    assert heads.split() == ["stage", "steps", "float32", "bfloat16", "difference"]
    assert whole.split() == ["base", "all", "4.50000", "4.54500", "+1.00%"]
    assert last.split() == ["base", "after", "6", "7.50000", "7.57500", "+1.00%"]


def test_a_stage_with_a_dtype_of_its_own_is_refused(tmp_path, capsys, monkeypatch):
    """It would be compared with itself."""
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("nothing is to be trained"))
    config = tmp_path / "tiny.py"
    config.write_text(TINY_CONFIG)
    arguments = ["bench", "precision", f"--config={config}", f"--workdir={tmp_path / 'runs'}"]
    assert main.main([*arguments, "--set", "training.stages[0].model.compute_dtype=float32"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "training.stages[0].model.compute_dtype: stage 'base' computes in float32 in both runs" in line


def test_a_stage_of_one_line():
    (row,) = precision.compared(
        [{"stage": "a", "step": 5, "loss": 2.0}], [{"stage": "a", "step": 5, "loss": 1.0}]
    )
    assert (row["steps"], row["difference"]) == ("all", -0.5)
