"""What the papers print of their training, for the configs' argument recipe=paper.

PAG and the recurrent scene parsing of the same authors: SGD with momentum .9, one image a step, poly decay
with power .9 from 2e-4 and 2.5e-4, no warm-up. Weight decay (5e-4) and the rates of new layers are those of
the released code; the papers do not print them, nor how long they train: here every stage sees as many images
as in our own recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from dynpix_jax.configs.training import SGD
from dynpix_jax.core.configs import given_args, one_of

RECIPE = one_of("ours", "paper")
TRAIN_SPLIT = one_of("train", "trainval")
"""Of BSDS500; the papers train on train and val, and evaluate on test."""


def pag(config: ml_collections.ConfigDict) -> None:
    """Puts the training of the pixel-wise gates' paper in place of a config's own.

    Lambda of eq. 6 is as printed, though the losses stay means over pixels where eq. 7 to 10 are sums. Gates
    start as released: half open, in no favour of a branch.
    """
    multipliers = {r".*/gate/.*": 10.0, r".*/multipool/.*": 5.0, r".*": 1.0}
    stages = []
    for stage in config.training.stages:
        model = dict(stage.get("model", {}))
        gated, pooled = "gate" in model, "multipool" in model
        if pooled:
            model["multipool"] = dict(model["multipool"], original_bias=0.0)
        if gated and model["gate"]["kind"] == "pixel":
            model["gate"] = dict(model["gate"], weight=1e-4, options=dict(init_std=1.0, open_bias=0.0))
        exists = {r".*/gate/.*": gated or pooled, r".*/multipool/.*": pooled, r".*": True}
        rates = tuple((pattern, rate) for pattern, rate in multipliers.items() if exists[pattern])
        stages.append(dict(stage, multipliers=rates, **({"model": model} if model else {})))
    config.training = _training(config.training, 2e-4, stages)


def perspective(config: ml_collections.ConfigDict) -> None:
    """Puts the training of recurrent scene parsing in place of a config's own.

    As released, the losses of the depth weigh .01 and .001, and the layer of the classes learns ten times as
    fast as the rest, its bias twenty times.
    """
    classes = ((r".*/scores/bias", 20.0), (r".*/scores/kernel", 10.0)) if config.model.segmentation else ()
    stages = [dict(stage, multipliers=(*classes, (r".*", 1.0))) for stage in config.training.stages]
    config.training = _training(config.training, 2.5e-4, stages)
    for name, weight in (("depth_class", 0.01), ("depth", 0.001)):
        if name in config.model.get("loss", {}):
            config.model.loss[name] = weight


def crops(scale: float = 1.0) -> dict[str, Any]:
    """Section ``augment`` of PAG: mirrored or not, crops 20 pixels smaller than the image."""
    return dict(flip=True, margin=20, **({} if scale == 1.0 else {"scales": (scale,)}))


def choose_bsds_split(arg: str | None, args: ml_collections.ConfigDict) -> None:
    """Who trains on train and val evaluates on test, unless told otherwise."""
    if args.train_split == "trainval" and "split" not in given_args(arg):
        args.split = "test"


def _training(
    section: Mapping[str, Any], learning_rate: float, stages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Section ``training`` with SGD at a rate for every stage, and one image a step."""
    batch = section["batch_size"]
    longer = (dict(stage, steps=batch * stage["steps"], learning_rate=learning_rate) for stage in stages)
    return dict(section, batch_size=1, stages=tuple(longer), warmup_steps=0, **SGD)
