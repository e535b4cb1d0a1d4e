"""The configs for one's own images: every one is built for a folder of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.core.configs import load_config
from dynpix_jax.data.sources import open_source
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ARGUMENTS = {
    "anytime": "variant=ca",
    "astmt": "variant=single,task=segmentation",
    "mdeq": "variant=tiny",
    "pag": "task=segmentation,variant=gated,network=small",
    "perspective": "variant=attention",
    "pixelnet": "task=segmentation",
}


def test_every_paper_has_one():
    assert {file.parent.name for file in CONFIGS.glob("*/folder.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("paper", ARGUMENTS)
def test_it_is_built(paper, tmp_path):
    for name in "abcde":
        for folder, picture in (("images", np.zeros((48, 64, 3))), ("labels", np.ones((48, 64)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), picture.astype(np.uint8))
    run = read_run(
        load_config(f"{CONFIGS / paper / 'folder.py'}:{ARGUMENTS[paper]},classes=3,root={tmp_path}")
    )
    source = open_source(run.data.train.source)
    assert len(check_stages(run, source.spec)) == len(run.stages)
    assert source.spec.fields["segmentation"].classes is not None
