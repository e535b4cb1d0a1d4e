"""The depth branch on 7-Scenes: bins and log depth of a room from one picture. Not in the paper.

    python train.py --config=configs/perspective/sevenscenes.py:loops=1 --workdir=runs/7scenes/loop1
    python eval.py --config=configs/perspective/sevenscenes.py:loops=1 --workdir=runs/7scenes/loop1

The frames have no classes, so that the depth alone is trained: bins, which gate the pooling of the loops, and
its logarithm. Needs frames in folders, or the data set as published (root=DIR), and ImageNet weights imported
by ``dynpix import-weights`` (weights=FILE). Arguments: loops; tied, gate, blur, test_aug, steps,
continue_from, packed as in recipe.py; split = val, or test of the published layout; every = take each n-th
frame of a sequence; budget = cpu (half size, one frame a step) | gpu (full size, eight a step).

Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import SEVEN_SCENES
from dynpix_jax.configs.perspective import recipe
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config."""
    for name in ("variant", "regression", "loop_loss"):
        if name in given_args(arg):
            raise UserError(f"config argument {name}: 7-Scenes has no classes, the depth is always trained")
    given = f"variant=pred_depth,{arg or ''}"
    args = recipe.read_args(given, root=SEVEN_SCENES.root, split="val", variants=("pred_depth",), every=1)
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "sevenscenes",
        segmentation=None,
        steps=recipe.Steps(1, 600, 0, 200, 0) if cpu else recipe.Steps(8, 6000, 0, 2000, 0),
        bins=dict(edges=recipe.log_edges(0.6, 4.0), of="depth"),
        scale=SEVEN_SCENES.scale(args.budget),
    )
    # Nothing but depth is learned here: it weighs as the classes do elsewhere.
    config.model.loss = dict(depth_class=0.5, depth=1.0)
    config.data = SEVEN_SCENES.data(args, ("depth",), every=args.every)
    return config
