"""Anytime pose of the figures in synthetic scenes: every row of table 2 in minutes, without a download.

    python train.py --config=configs/anytime/scenes_pose.py:variant=ca --workdir=runs/scenes_pose/ca
    python eval.py --config=configs/anytime/scenes_pose.py:variant=ca --workdir=runs/scenes_pose/ca

variant = hrnet | ee | rh | ca (configs/anytime/pose.py); seed, of the weights and the order of the images.
HRNet-W18-Small-v1 learns from nothing on 64x64 crops around figures, whose 16 joints are known exactly, as
MPII's are cropped and augmented. Two CPU cores are enough: rh in under 3 minutes, ca longer (interpolation).

PCKh is to be compared with that of the mean figure at its mean place: .42
(tests/configs/test_pose_configs.py). The paper has no such rows. Measured here: docs/results.md.
"""

from __future__ import annotations

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.configs.anytime import pose
from dynpix_jax.core.configs import one_of, parse_arg

SIZE = (96, 128)
"""(H, W) of the scenes."""
CROP = (64, 64)
STEPS = 350
THRESHOLD = 0.1
"""Of variant=ca: so short a training leaves outputs above the paper's .002 nearly everywhere."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one row."""
    args = parse_arg(arg, variant=one_of(*pose.VARIANTS, default="ca"), seed=0)
    config = ml_collections.ConfigDict()
    config.name = f"anytime_scenes_pose_{args.variant}"
    config.seed = args.seed
    config.model = pose.model(args.variant, arch="w18s1", sigma=1.0, start=0.5, threshold=THRESHOLD)
    scenes = dict(name="scenes", size=SIZE, fields=("keypoints", "head_size", "box"), seed=0)
    config.data = dict(
        train=dict(
            source=dict(scenes, split="train", length=1000, crop=None),
            augment=dict(flip=True, crop=CROP, box=dict(field="box", scale=0.15, rotation=15.0, rotated=0.6)),
        ),
        eval=dict(source=dict(scenes, split="val", length=40, crop=CROP)),
    )
    stages = pose.stages(args.variant, (STEPS,), 2e-3)
    changes = dict(weight_decay=0.0, warmup_steps=20, checkpoint_every=0, keep=1)
    config.training = training.section(args, 16, stages, **changes)
    config.evaluation = dict(pictures=4)
    return config
