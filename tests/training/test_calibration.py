"""A system that calibrates itself does so once a stage, at its end, before that is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynpix_jax.core.capabilities import Calibrates
from dynpix_jax.training.checkpoints import load_variables
from dynpix_jax.training.loop import train
from tests.training import toy
from tests.training.test_loop import Record


class Calibrated(toy.ToySystem):
    """Its head's bias becomes a quarter of the number of images: of 2, or of 3 if it is deep."""

    @property
    def calibration_images(self) -> int:
        return 3 if self.deep else 2

    def calibrate(self, variables: Any, image: Any, count: int) -> tuple[Any, str]:
        shapes = {image(index).shape for index in range(count)}
        assert shapes == {(1, 24, 32, 3)}  # whole, and at half of their size as evaluation sees them
        head = variables["params"]["head"]
        head = {**head, "bias": np.full_like(head["bias"], count / 4)}
        return {**variables, "params": {**variables["params"], "head": head}}, f"{count} images"


def test_every_stage_is_calibrated_once_and_then_saved_and_evaluated(tmp_path: Path) -> None:
    """Also where a run stops right behind the calibration, and goes on from its checkpoint."""
    record, seen = Record(), []
    assert isinstance(Calibrated(toy.ToyConfig("")), Calibrates)
    sections = toy.config(eval_every=6, checkpoint_every=0)
    sections["model"] = {"system": f"{__name__}:Calibrated"}
    sections["data"]["train"]["source"] = {"name": "scenes", "split": "train", "size": (48, 64), "length": 5}
    sections["evaluation"] = {"inference": {"scales": (0.5,)}}

    def evaluate(system: Calibrated, variables: Any) -> dict[str, float]:
        seen.append(float(variables["params"]["head"]["bias"][0]))
        if len(seen) == 1:
            raise RuntimeError("stopped")
        return {}

    def go() -> Any:
        run = toy.read_run(sections)
        return train(run, tmp_path, batches=toy.batches(4), evaluate_fn=evaluate, writers=[record])

    with pytest.raises(RuntimeError, match="stopped"):
        go()
    go()
    result = go()  # finds the run finished
    assert seen == [0.5, 0.5, 0.75]
    assert [record.notes.count(f"{count} images") for count in (2, 3)] == [1, 1]
    assert float(result.state.params["head"]["bias"][0]) == 0.75
    ends = [load_variables(tmp_path, stage)[0] for stage in ("base", "deep")]
    assert [float(saved["params"]["head"]["bias"][0]) for saved in ends] == [0.5, 0.75]
