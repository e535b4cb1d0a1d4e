"""PAG on CamVid: semantic segmentation of street scenes, 11 classes. Not in the paper.

    python train.py --config=configs/pag/camvid.py:variant=gated,rho=0.7 --workdir=runs/camvid/gated
    python eval.py --config=configs/pag/camvid.py:variant=gated,rho=0.7 --workdir=runs/camvid/gated

Needs the data set as SegNet's authors publish it (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE). Arguments: variant = base | multipool | average | gated | truncated |
layer_skip; rho, the target density; gate_scope = residual | conv3x3, the two readings of eq. 2; multipool =
the blocks that hold a MultiPool, joined by "+" (res6 too); drop_blocks of variant=truncated; budget = cpu
(images at two thirds of their size, one a step, 1500 steps and about 1 a second on 2 cores for base) | gpu
(full size); continue_from = workdir of the variant one stage earlier, so that only the last stages are
trained; split = train | val | test, the images that are evaluated; packed=True: root holds what ``dynpix
prepare`` wrote. An argument that the variant does not read is refused. Departures from the paper: see
recipe.py.

Measured here (367 images to train on, 101 of val): docs/results.md.
"""

from __future__ import annotations

import ml_collections

from . import recipe

CLASS_WEIGHTS = (0.64, 0.58, 1.66, 0.52, 1.0, 0.77, 1.56, 1.58, 0.91, 1.91, 2.49)
"""Cube root of the median share of a class divided by its own, over the pixels of train: mIoU counts a
bicyclist's pixels (.3 %) as much as the road's (33 %)."""

EVALUATED_AT = 2 / 3
"""Of the images' size, for budget=cpu: 240x320 pixels."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, tasks=("segmentation",), root="data/CamVid", split="val")
    cpu = args.budget == "cpu"
    config = recipe.pag_config(
        args,
        "camvid",
        task_options=dict(classes=11, class_weights=CLASS_WEIGHTS),
        steps=recipe.Steps(1, 1500, 400, 180) if cpu else recipe.Steps(8, 6000, 3000, 2000),
        head_features=32 if cpu else 64,
        scale=EVALUATED_AT if cpu else 1.0,
    )
    source = recipe.source(args, "camvid", ("segmentation",))
    augment = dict(
        flip=True,
        # On a CPU, nearly the whole image at the least scale.
        crop=(224, 288) if cpu else (352, 448),
        scales=(0.625, 0.875) if cpu else (0.75, 1.5),
        scale_between=True,
        colour=dict(brightness=0.2, contrast=0.2, saturation=0.2),
    )
    config.data = dict(
        train=dict(source=dict(source, split="train"), augment=augment),
        eval=dict(source=dict(source, split=args.split)),
    )
    return config
