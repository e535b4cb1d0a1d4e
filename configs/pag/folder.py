"""PAG on your own images: segmentation, boundaries, depth or normals, from a folder (docs/own-data.md).

    dynpix train --config=pag/folder.py:root=my,task=segmentation,classes=5,variant=gated --workdir=runs/my
    dynpix eval --workdir=runs/my

Needs ImageNet weights imported by ``dynpix import-weights`` (weights=FILE), or network=small, which learns
from nothing: a narrow ResNet-26, for a first try and for machines without a GPU.
Arguments: classes, crop, val_share, steps as of `datasets.FOLDER_ARGS`; the others are those of recipe.py.
budget = cpu (one image a step) | gpu (eight).

Expected score: that of your images.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pag import recipe
from dynpix_jax.core.configs import given_args, one_of
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = recipe.read_args(
        arg,
        tasks=datasets.FOLDER_TASKS[:4],
        root=datasets.FOLDER.root,
        split="val",
        network=one_of("resnet50", "small"),
        **datasets.FOLDER_ARGS,
    )
    cpu, small = args.budget == "cpu", args.network == "small"
    if small and "weights" in given_args(arg):
        raise UserError("config argument weights: network=small learns from nothing and does not read it")
    steps = args.steps or (1500 if cpu else 6000)
    data = datasets.folder(arg, args, (args.task,))
    config = recipe.pag_config(
        args,
        "folder",
        task_options=dict(classes=args.classes) if args.task == "segmentation" else {},
        schedule=recipe.Schedule(1 if cpu else 8, steps, max(1, steps // 4), max(1, steps // 8)),
        head_features=32,
    )
    config.data = data
    if small:
        config.model.backbone = dict(depth=26, width=24, frozen_norm=False, preprocessing="torch")
        config.training.init_from = args.continue_from
        config.training.stages = tuple(_from_nothing(stage) for stage in config.training.stages)
    return config


def _from_nothing(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage in which all layers learn, gates faster."""
    changed = {key: value for key, value in stage.items() if key not in ("frozen", "multipliers")}
    if stage["name"] == "base":
        return changed | dict(learning_rate=1e-3)
    return changed | dict(learning_rate=3e-4, multipliers=((r".*/gate/.*", 5.0), (r".*", 1.0)))
