"""The data sets as the configs of all papers read them: folder, classes, source, augmentation.

A config takes the data set's settings from here, and adds those of its paper:

    from dynpix_jax.configs import datasets

    NYUV2 = datasets.NYUV2
    args = parse_arg(arg, root=NYUV2.root, packed=False, split="test", budget="cpu", ...)
    config.model.task_options = NYUV2.segmentation                      # dict(classes=40)
    config.data = NYUV2.data(args, ("segmentation",))                   # augmented as NYUV2.augment says
    config.data = NYUV2.data(args, ("normals",), augment=dict(flip=True, crop=(224, 224)))
    config.evaluation.inference = dict(scales=(NYUV2.scale(args.budget),))

``data`` reads the arguments ``root``, ``split``, ``packed`` (if the config has it) and, where the data set's
own augmentation is taken, ``budget``. A data set that a new paper needs is one more constant here. What comes
out is part of a config, and so of every checkpoint that was trained with it: change a value only together
with the results that were made with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from dynpix_jax.core.configs import check_least, given_args
from dynpix_jax.core.errors import UserError

COLOUR = dict(brightness=0.2, contrast=0.2, saturation=0.2)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        source: Its name in `dynpix_jax.data.sources`.
        root: The default folder.
        segmentation: Options of that task, empty for a data set without classes.
        options: Options of the source.
        takes_fields: Whether the source has an option for the labels to read.
        cpu_scale: Size at which a network sees its images with budget=cpu, relative to their own.
        augment: Budget -> section ``augment``; empty where each paper has one of its own.
    """

    source: str
    root: str
    segmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    takes_fields: bool = True
    cpu_scale: float = 0.5
    augment: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def scale(self, budget: str) -> float:
        """Size at which evaluation shows an image, relative to its own."""
        return self.cpu_scale if budget == "cpu" else 1.0

    def data(
        self,
        args: ml_collections.ConfigDict,
        labels: tuple[str, ...],
        *,
        augment: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Section ``data``: split train (``args.train_split``) to train on, ``args.split`` to evaluate.

        Args:
            args: Arguments of the config: root, split, and what it has of train_split; packed: root holds
                what ``dynpix prepare`` wrote.
            labels: Fields to read, beside the image.
            augment: Replaces the data set's own for ``args.budget``.
            options: Options of the source, beside the data set's own.
        """
        source = dict(name=self.source, root=args.root)
        if args.get("packed", False):
            # The shards must have been packed with the options that are asked for here.
            made_with = dict(self.options, **options)
            source.update(name="packed", of=self.source, fields=labels, options=made_with)
        else:
            source.update(**({"fields": labels} if self.takes_fields else {}), **self.options, **options)
        augment = self.augment[args.budget] if augment is None else augment
        return dict(
            train=dict(source=dict(source, split=args.get("train_split", "train")), augment=dict(augment)),
            eval=dict(source=dict(source, split=args.split)),
        )


def _indoor(crop: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Augmentation of Kong and Fowlkes for NYUv2 and SUN RGB-D; on a CPU at half the size, upright.

    Args:
        crop: (H, W) on a GPU.
    """
    colour = dict(COLOUR, gamma=(0.9, 1.1))
    common = dict(flip=True, scale_between=True, colour=colour)
    return dict(
        cpu=dict(common, crop=(208, 272), scales=(0.5, 0.75), rotations=(0.0,), rotation_between=False),
        gpu=dict(common, crop=crop, scales=(0.5, 2.0), rotations=(-10.0, 10.0), rotation_between=True),
    )


NYUV2 = DataSet("nyuv2", "data/nyuv2", dict(classes=40), augment=_indoor((400, 544)))
SUN_RGBD = DataSet(
    "sun_rgbd",
    "data/sunrgbd",
    dict(classes=37),
    augment=_indoor((400, 528)),
)
STANFORD2D3D = DataSet("stanford2d3d", "data/stanford2d3d", dict(classes=13))
CITYSCAPES = DataSet("cityscapes", "data/cityscapes", dict(classes=19, instance_sizes="cityscapes"))
CITYSCAPES_RELEASED = dict(resampling="linear", outside="black")
"""Images of training in the released code of HRNet, of the anytime paper and of MDEQ."""
BSDS500 = DataSet(
    "bsds500", "data/BSDS500", options=dict(label="consensus", consensus=0.3), takes_fields=False
)
CAMVID = DataSet(
    "camvid",
    "data/CamVid",
    dict(
        classes=11,
        # Cube root of the median share of a class divided by its own, over the pixels of train: mIoU counts a
        # bicyclist's pixels (.3 %) as much as the road's (33 %).
        class_weights=(0.64, 0.58, 1.66, 0.52, 1.0, 0.77, 1.56, 1.58, 0.91, 1.91, 2.49),
    ),
    takes_fields=False,
    cpu_scale=2 / 3,  # 240x320 pixels
    augment=dict(
        # On a CPU, nearly the whole image at the least scale.
        cpu=dict(flip=True, crop=(224, 288), scales=(0.625, 0.875), scale_between=True, colour=COLOUR),
        gpu=dict(flip=True, crop=(352, 448), scales=(0.75, 1.5), scale_between=True, colour=COLOUR),
    ),
)
SEVEN_SCENES = DataSet(
    "seven_scenes",
    "data/7scenes_kitchen",
    augment=dict(
        cpu=dict(flip=True, crop=(224, 304), scales=(0.475, 0.625), scale_between=True, colour=COLOUR),
        gpu=dict(flip=True, crop=(448, 608), scales=(0.95, 1.25), scale_between=True, colour=COLOUR),
    ),
)


def _several_tasks(crop: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """ASTMT's: mirrored, rotated up to 20 degrees, scaled by 0.75 to 1.25; on a CPU half as large.

    The paper then stretches images to 512 x 512; here they are cropped, as everywhere else.

    Args:
        crop: (H, W) on a GPU.
    """
    turned = dict(flip=True, scale_between=True, rotations=(-20.0, 20.0), rotation_between=True)
    half = (crop[0] // 2, crop[1] // 2)
    return dict(
        cpu=dict(turned, canvas="bounding", crop=half, scales=(0.375, 0.625)),
        gpu=dict(turned, canvas="bounding", crop=crop, scales=(0.75, 1.25)),
    )


PASCAL_MULTITASK = DataSet(
    "pascal_multitask", "data/PASCAL_MT", dict(classes=21), augment=_several_tasks((512, 512))
)
NYUD_MULTITASK = DataSet(
    "nyud_multitask", "data/NYUD_MT", dict(classes=41), augment=_several_tasks((512, 512))
)
FSV = DataSet("fsv", "data/FSV", dict(classes=3), augment=_several_tasks((512, 512)))

VOC2012 = DataSet("voc2012", "data/VOCdevkit", dict(classes=21), takes_fields=False)
# Its root is VOC 2010; a config says where the labels are, and which of them.
PASCAL_CONTEXT = DataSet("pascal_context", "data/VOCdevkit", takes_fields=False)

FOLDER = DataSet("folder", "data/mine")
FOLDER_TASKS = ("segmentation", "boundaries", "depth", "normals", "saliency")
FOLDER_ARGS: Mapping[str, Any] = dict(classes=2, crop=224, val_share=0.2, steps=0)
"""Arguments of the configs folder.py: number of classes; side of the crops of training; share of the images
that is val, without lists or folders of splits; steps of the first stage, 0 for the config's own."""


def folder(arg: str | None, args: ml_collections.ConfigDict, labels: tuple[str, ...]) -> dict[str, Any]:
    """Section ``data`` of your own images: crops, mirrored or not, scaled, with other colours.

    Args:
        arg: The string argument of the config.
        args: What was read of it.
        labels: Fields to read, beside the image.

    Raises:
        UserError: A number of classes where there is no segmentation; a wrong number.
    """
    segmented = "segmentation" in labels
    if not segmented and "classes" in given_args(arg):
        raise UserError(f"config argument classes: {' and '.join(labels)} has none")
    check_least(args, {"classes": 2, "crop": 8, "steps": 0})
    options = dict(val_share=args.val_share) | (dict(classes=args.classes) if segmented else {})
    crop = (args.crop, args.crop)
    augment = dict(flip=True, crop=crop, scales=(0.75, 1.25), scale_between=True, colour=COLOUR)
    return FOLDER.data(args, labels, augment=augment, **options)


SCENE_CLASSES = 8
"""Of the synthetic scenes: floor, wall, ceiling, rug, picture, box, ball, person."""


def scenes(
    labels: tuple[str, ...], *, size: tuple[int, int] = (96, 128), train: int = 1000, val: int = 40
) -> dict[str, Any]:
    """Section ``data`` of synthetic scenes: ``train`` of them to train on, mirrored or not, ``val`` others.

    Args:
        labels: Fields to read, beside the image.
        size: (H, W) in pixels.
    """
    source = dict(name="scenes", size=size, fields=labels, seed=0)
    return dict(
        train=dict(source=dict(source, split="train", length=train), augment=dict(flip=True)),
        eval=dict(source=dict(source, split="val", length=val)),
    )
