"""Recurrent scene parsing on CamVid, whose images have no depth: attention gates. Not in the paper.

    python train.py --config=configs/perspective/camvid.py:variant=attention,loops=2 \
        --workdir=runs/camvid/loop2
    python eval.py --config=configs/perspective/camvid.py:variant=attention,loops=2 \
        --workdir=runs/camvid/loop2

Needs the data set as SegNet's authors publish it (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE). Arguments: variant = baseline | average | attention; the others, and
departures from the paper, are those of nyuv2.py; split = train | val | test; budget = cpu (images at two
thirds of their size, one a step) | gpu (full size, eight a step).
"""

from __future__ import annotations

import ml_collections

from . import recipe

CLASS_WEIGHTS = (0.64, 0.58, 1.66, 0.52, 1.0, 0.77, 1.56, 1.58, 0.91, 1.91, 2.49)
"""Those of configs/pag/camvid.py: cube root of the median share of a class divided by its own."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(
        arg, root="data/CamVid", split="val", variants=("baseline", "average", "attention")
    )
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "camvid",
        segmentation=dict(classes=11, class_weights=CLASS_WEIGHTS),
        steps=recipe.Steps(1, 1000, 500, 300, 200) if cpu else recipe.Steps(8, 6000, 3000, 2000, 1500),
        bins=recipe.NYU_BINS,
        scale=2 / 3 if cpu else 1.0,
    )
    source = recipe.source(args, "camvid", ("segmentation",))
    augment = dict(
        flip=True,
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
