"""MDEQ on synthetic scenes: an implicit network in minutes, without a download.

    python train.py --config=configs/mdeq/scenes.py --workdir=runs/scenes/mdeq
    python eval.py --config=configs/mdeq/scenes.py --workdir=runs/scenes/mdeq

The tiny variant learns segmentation from nothing on rendered rooms of 96x128 pixels: 200 steps through three
unrolled applications of f, 400 through its fixed point. Evaluation predicts after 1, 2, 4 and 8 iterations of
the solver. Arguments: variant, solver, iterations, read_out, jacobian as recipe.py has them; seed. The paper
has no such rows; measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.mdeq import recipe
from dynpix_jax.core.configs import refuse_args


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    refuse_args(arg, ("budget", "root", "packed", "weights", "continue_from", "split"), "the scenes do")
    args = recipe.read_args(arg, variant="tiny", root="", split="val", seed=0)
    config = recipe.mdeq_config(
        args,
        "scenes",
        task_options=dict(classes=datasets.SCENE_CLASSES),
        steps=recipe.Steps(batch_size=4, pretraining=200, equilibrium=400),
    )
    config.seed = args.seed
    config.training.keep = 1
    config.data = datasets.scenes(("segmentation",))
    return config
