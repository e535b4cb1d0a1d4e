"""Anytime human pose on MPII: the rows of the paper's table 2.

    python train.py --config=configs/anytime/mpii.py:variant=ca --workdir=runs/mpii/ca
    python eval.py --config=configs/anytime/mpii.py:variant=ca --workdir=runs/mpii/ca

variant = hrnet | ee | rh | ca (configs/anytime/pose.py); arch = w32 (the paper's) | w18s2 | w18 | w48;
root: folder with images/ and annot/; weights: HRNet-W32 trained on ImageNet, converted by
`dynpix import-weights`, "" for none; flip=False: without the mirror image, one view, as predictions in time
have to do; split = val | trainval | train; budget = gpu | cpu.

budget=gpu is the paper's training: 256x256 crops, 210 epochs of 22246 people in batches of 128, Adam at
1e-3, a tenth of it after epochs 170 and 200 (each with fresh moments here); adaptivity after epoch 10. The
paper's gammas, weight decay and momentum are in the file that its settings are from, whose code does not read
them. 4 GPUs. budget=cpu: 128x128 crops, batches of 16, a fortieth of the steps, to see that all of it runs.

Paper, PCKh@.5 at the last exit, and the mean of four; MACs / 2^30 alike: HRNet 90.33 (9.49); EE 90.31, 74.60
(9.51, 4.73); RH 90.26, 79.16 (9.55, 4.76); RH + CA 90.20, 79.04 (3.88, 2.44). Ours: not run, needs MPII.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.configs.anytime import pose
from dynpix_jax.core.configs import one_of, parse_arg

STEPS_PER_EPOCH = 22246 // 128
EPOCHS = (170, 30, 10)
"""At 1e-3, 1e-4 and 1e-5."""
UNADAPTED = 10
"""Epochs before anything is skipped."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one row."""
    args = parse_arg(
        arg,
        variant=one_of(*pose.VARIANTS, default="ca"),
        arch=one_of("w32", "w18s2", "w18", "w48"),
        root="data/mpii",
        weights="weights/hrnet_w32.safetensors",
        split=one_of("val", "trainval", "train"),
        flip=True,
        budget=one_of("gpu", "cpu"),
    )
    cpu = args.budget == "cpu"
    side = 128 if cpu else 256
    steps = tuple(epochs * STEPS_PER_EPOCH // (40 if cpu else 1) for epochs in EPOCHS)
    config = ml_collections.ConfigDict()
    config.name = f"anytime_mpii_{args.arch}_{args.variant}"
    config.model = pose.model(args.variant, arch=args.arch, sigma=2.0, start=UNADAPTED / EPOCHS[0])
    config.model.compute_dtype = training.COMPUTE_DTYPE[args.budget]
    config.data = dict(
        train=dict(
            source=dict(name="mpii", root=args.root, split="train", crop=None),
            augment=dict(
                flip=True,
                crop=(side, side),
                box=dict(field="box", scale=0.25, rotation=30.0, rotated=0.6),
                # HRNet's crops; those of evaluation are so by default.
                resampling="linear",
                outside="black",
            ),
        ),
        eval=dict(source=dict(name="mpii", root=args.root, split=args.split, crop=(side, side))),
    )
    config.training = training.section(
        args,
        16 if cpu else 128,
        pose.stages(args.variant, steps, 1e-3),
        weight_decay=0.0,
        poly_power=0.0,
        checkpoint_every=500,
        workers=0 if cpu else 16,
    )
    config.evaluation = dict(inference=dict(flip=args.flip))
    return config
