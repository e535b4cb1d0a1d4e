"""The convention of weights: which settings of a backbone they were trained for.

Weights of one name run under another convention without an error and predict nonsense. So an import says what
a file follows and writes it into the file's header, and whoever loads that file for a config compares.

| setting | what tells it |
|---|---|
| ``stride_in_1x1`` | the layers of `.mat` and `.caffemodel` |
| ``preprocessing`` | both formats are Caffe's: 0..255 less the mean; the stem's input is turned to BGR |
| either | a PyTorch file under torchvision's or ASTMT's names; `--convention` |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.backbones.base import CAFFE_MEAN_RGB, OnBackbone
from dynpix_jax.backbones.pretrained import CAFFE, TORCH, Names, Settings
from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.network_file import Convention, NetworkFile
from dynpix_jax.weights.readers import read_metadata

CONVENTIONS: dict[str, Settings] = {"caffe": CAFFE, "torch": TORCH}
"""What `--convention` can state."""

_ENTRY = "backbone"  # of a weights file's header
_WORDS: dict[tuple[str, Any], str] = {
    ("stride_in_1x1", True): "stride in the first 1x1",
    ("stride_in_1x1", False): "stride in the 3x3",
    ("preprocessing", "caffe"): "BGR in 0..255 less the mean",
    ("preprocessing", "torch"): "RGB / 255, mean, standard deviation",
    ("preprocessing", "none"): "RGB in 0..255 as they are",
}


def settings_of(network: NetworkFile, names: Names, stated: str | None) -> dict[str, bool | str]:
    """The settings that a file's weights were trained for, as far as the file or ``stated`` tells them.

    Args:
        network: The file.
        names: Of its architecture; a backbone has the settings that its names know.
        stated: A key of `CONVENTIONS` that the user gave; it overrules the file.

    Raises:
        UserError: ``stated`` is no convention.
    """
    if stated is not None:
        if stated not in CONVENTIONS:
            raise UserError(f"--convention {stated}: expected one of {', '.join(CONVENTIONS)}")
        known = dict(CONVENTIONS[stated])
    elif network.format == "torch":
        known = {name: value for name, value in names.settings.items() if value != ""}
    elif network.format in ("matconvnet", "caffe"):
        known = {"preprocessing": "caffe"}
        if network.convention.stride_in_1x1 is not None:
            known["stride_in_1x1"] = network.convention.stride_in_1x1
    else:
        known = {}
    return {name: known[name] for name in names.settings if name in known}


def reads_rgb(network: NetworkFile) -> bool:
    """Whether a Caffe or MatConvNet file takes RGB: its mean tells, or else its format's custom."""
    order = network.convention.channel_order
    return order == "rgb" if order is not None else network.format == "matconvnet"


def mean_note(convention: Convention) -> str:
    """What to say of a mean that is not the one that ``caffe`` preprocessing subtracts; "" of that one."""
    if convention.mean is None or len(convention.mean) != 3:
        return ""
    if np.abs(np.subtract(sorted(convention.mean), sorted(CAFFE_MEAN_RGB))).max() < 0.01:
        return ""
    return f"its mean is {convention.mean}, preprocessing=caffe subtracts {CAFFE_MEAN_RGB} from RGB"


def describe(settings: Settings) -> str:
    """The settings in words: "stride in the 3x3 (stride_in_1x1=False), ..."."""
    return ", ".join(f"{_WORDS[name, value]} ({name}={value})" for name, value in settings.items())


def to_header(settings: Settings) -> dict[str, str]:
    """The settings as an entry of a file's header; {} if nothing is known."""
    return {_ENTRY: json.dumps(dict(settings))} if settings else {}


def read_settings(path: str | os.PathLike[str]) -> dict[str, bool | str]:
    """The settings in one of our files' header, {} without; a UserError if it is damaged."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        found = json.loads(read_metadata(path).get(_ENTRY, "{}"))
        return {name: value for name, value in found.items() if (name, value) in _WORDS}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: the entry {_ENTRY!r} of its header is damaged: {error}") from error


def check_settings(path: str | os.PathLike[str], settings: Settings, backbone: Any) -> None:
    """Compares what weights were trained for with a config's section ``model.backbone``.

    Raises:
        UserError: They differ; names both, and the settings to change.
    """
    differing = {
        name: value
        for name, value in settings.items()
        if hasattr(backbone, name) and getattr(backbone, name) != value
    }
    if differing:
        theirs = ", ".join(_WORDS[item] for item in differing.items())
        config = ", ".join(_words(name, getattr(backbone, name)) for name in differing)
        change = " ".join(f"model.backbone.{name}={value}" for name, value in differing.items())
        raise UserError(
            f"{path}: weights of another convention: they have {theirs}; the config has {config}. "
            f"Change the config: --set {change}"
        )


def _words(name: str, value: Any) -> str:
    return _WORDS.get((name, value), f"{name}={value}")


def check_header(path: str | os.PathLike[str], model: Any) -> Mapping[str, bool | str]:
    """`check_settings` of one of our files with a typed ``model`` section; returns the file's settings."""
    settings = read_settings(path)
    check_settings(path, settings, model.backbone if isinstance(model, OnBackbone) else None)
    return settings
