"""PAG on Stanford 2D-3D-S panoramas: segmentation (13 classes), depth, normals (tables 3, 4 and 5).

    python train.py --config=configs/pag/stanford2d3d.py:task=normals,variant=gated,rho=0.7,budget=gpu \
        --workdir=runs/stanford2d3d/normals
    python eval.py --config=configs/pag/stanford2d3d.py:task=normals,variant=gated,rho=0.7,budget=gpu \
        --workdir=runs/stanford2d3d/normals

Needs the areas with their assets in one folder (root=DIR) and ImageNet weights imported by ``dynpix
import-weights`` (weights=FILE; with budget=gpu those of a stem of three 3x3, or give stem=7x7).
Arguments: task = segmentation | depth | normals; points = the file of
``python -m tools.annotate_panorama``, for normals (without it each panorama's north is found by its depth);
split = train | val, areas 3 and 4; budget = cpu (a quarter of the panorama's area, one crop a step) | gpu
(crops of 704x704, four a step; made for one GPU of 40 GB); the others, and departures from the paper:
recipe.py.

Paper, areas 3 and 4. Segmentation (IoU): base .795, MultiPool at Res5 .837, rho .9 / .7 / .5: .828 / .824 /
.818. Depth (delta < 1.25): base .731, MultiPool .776, .773 / .754 / .727. Normals (mean angle): base 19.0,
MultiPool 16.5, 16.7 / 17.0 / 17.7. All rows: ``dynpix tables pag``.
Here: not run, needs Stanford 2D-3D-S.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs.datasets import STANFORD2D3D
from dynpix_jax.configs.pag import recipe
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task and variant."""
    args = recipe.read_args(
        arg,
        tasks=("segmentation", "depth", "normals"),
        root=STANFORD2D3D.root,
        split="val",
        stem=recipe.STEM,
        points="",
    )
    if "points" in given_args(arg) and args.task != "normals":
        raise UserError(f"config argument points: task={args.task} does not read it; expected task=normals")
    cpu = args.budget == "cpu"
    config = recipe.pag_config(
        args,
        "stanford2d3d",
        task_options=dict(STANFORD2D3D.segmentation) if args.task == "segmentation" else {},
        schedule=recipe.Schedule(1, 3000, 800, 300) if cpu else recipe.Schedule(4, 20000, 10000, 6000),
        head_features=32 if cpu else 64,
        scale=STANFORD2D3D.scale(args.budget),
    )
    # A panorama has one scale, and its rows are upright: only the column to begin with, and the side, change.
    augment = dict(flip=True, crop=(352, 352) if cpu else (704, 704), scales=(0.5,) if cpu else (1.0,))
    config.data = STANFORD2D3D.data(args, (args.task,), augment=augment, points=args.points)
    return config
