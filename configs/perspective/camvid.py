"""Recurrent scene parsing on CamVid, whose images have no depth: attention gates. Not in the paper.

    python train.py --config=configs/perspective/camvid.py:variant=attention,loops=2 \
        --workdir=runs/camvid/loop2
    python eval.py --config=configs/perspective/camvid.py:variant=attention,loops=2 \
        --workdir=runs/camvid/loop2

Needs the data set as SegNet's authors publish it (root=DIR) and ImageNet weights imported by ``dynpix import-
weights`` (weights=FILE), or weights = the workdir of a segmentation run of configs/pag/camvid.py, whose
backbone knows the classes. Arguments: variant = baseline | average | attention; the others, and departures
from the paper, are those of recipe.py; split = train | val | test; budget = cpu (images at two thirds of
their size, one a step) | gpu (full size, eight a step).

Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import CAMVID
from dynpix_jax.configs.perspective import recipe


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one variant."""
    args = recipe.read_args(arg, root=CAMVID.root, split="val", variants=("baseline", "average", "attention"))
    cpu = args.budget == "cpu"
    config = recipe.perspective_config(
        args,
        "camvid",
        segmentation=dict(CAMVID.segmentation),
        steps=recipe.Steps(1, 1000, 500, 300, 200) if cpu else recipe.Steps(8, 6000, 3000, 2000, 1500),
        bins=recipe.NYU_BINS,
        scale=CAMVID.scale(args.budget),
    )
    config.data = CAMVID.data(args, ("segmentation",))
    return config
