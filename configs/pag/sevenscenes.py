"""PAG on 7-Scenes: depth or surface normals of a room from one picture. Not in the paper.

    python train.py --config=configs/pag/sevenscenes.py:task=depth,variant=gated --workdir=runs/7scenes/depth
    python eval.py --config=configs/pag/sevenscenes.py:task=depth,variant=gated --workdir=runs/7scenes/depth

Needs frames of the data set in folders, or the data set as published (root=DIR), and ImageNet weights
imported by ``dynpix import-weights`` (weights=FILE). Arguments: task = depth | normals; loss = both | l2 | l1
of depth, both | cosine | arccos of normals; split = val, or test of the published layout; every = take each
n-th frame of a sequence; the others, and departures from the paper, are those of recipe.py. budget=cpu: half
size, one frame a step, 600 steps and about 1 a second on 2 cores for base.

Measured here on one kitchen (60 frames to train on, 18 of val): docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import SEVEN_SCENES
from dynpix_jax.configs.pag import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = recipe.read_args(arg, tasks=("depth", "normals"), root=SEVEN_SCENES.root, split="val", every=1)
    cpu = args.budget == "cpu"
    config = recipe.pag_config(
        args,
        "sevenscenes",
        task_options={},
        schedule=recipe.Schedule(1, 600, 250, 120) if cpu else recipe.Schedule(8, 6000, 3000, 2000),
        head_features=32 if cpu else 64,
        scale=SEVEN_SCENES.scale(args.budget),
    )
    config.data = SEVEN_SCENES.data(args, (args.task,), every=args.every)
    return config
