"""PixelNet on NYUv2: surface normals (Bansal et al., section 4.2, table 5), and depth.

    python train.py --config=configs/pixelnet/nyuv2_normals.py:budget=gpu --workdir=runs/pixelnet/normals
    python eval.py --config=configs/pixelnet/nyuv2_normals.py:budget=gpu --workdir=runs/pixelnet/normals

Needs the data set (root=DIR) and VGG-16 imported by ``dynpix import-weights --arch vgg16`` (weights=FILE).
Arguments: task = normals | depth (the paper's last footnote: the scale-invariant loss of Eigen, Puhrsch,
Fergus); tap = conv | relu, whether hypercolumns hold what the ReLU of conv1_2 to conv5_3 reads (as released
for normals) or gives; conv7, True for normals, False for depth, unless given; the others as in
pascal_context.py.

Normals are learned by the squared distance of unit vectors, twice the cosine's loss. Ours are those of
``dynpix_jax.data.nyuv2``, fitted to the depth; the paper's are Ladicky et al.'s: scores do not compare.

Paper, 654 test images: mean 19.8, median 12.0, rmse 28.2 degrees; 47.9 / 70.0 / 77.8 % within 11.25 / 22.5 /
30 degrees.
Here: not run, needs NYUv2.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import datasets
from dynpix_jax.configs.pixelnet import recipe
from dynpix_jax.core.configs import given_args, one_of

OPTIONS = {
    "normals": dict(cosine=2.0, arccos=0.0),
    "depth": dict(gamma=0.0, scale_invariance=0.5),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one task."""
    args = recipe.read_args(
        arg, root=datasets.NYUV2.root, split="test", task=one_of(*OPTIONS), tap=one_of("conv", "relu")
    )
    if "conv7" not in given_args(arg):
        args.conv7 = args.task == "normals"
    config = recipe.pixelnet_config(
        args,
        f"nyuv2_{args.task}",
        task=args.task,
        task_options=OPTIONS[args.task],
        length=recipe.Length(images=795, cpu=3000),
    )
    config.model.backbone.tap = args.tap
    if args.conv7:
        config.model.backbone.dropout = 0.0  # as released
    # The images are 425x560: the labelled part of 480x640.
    augment = recipe.cropped(args, (425, 560), colour=datasets.COLOUR)
    config.data = datasets.NYUV2.data(args, (args.task,), augment=augment)
    return config
