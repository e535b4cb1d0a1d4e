"""Pretrained weights of other libraries as variables of our networks."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dynpix_jax.backbones.pretrained import Architecture, Target, Tensors, vector
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry
from dynpix_jax.weights.readers import read_tensors
from dynpix_jax.weights.weights_file import check_architecture, is_native

_FAMILIES = {
    "dynpix_jax.backbones.resnet_names": "resnet18 resnet26 resnet34 resnet50 resnet101 "
    "resnet50_deep resnet101_deep se_resnet26 se_resnet50 se_resnet101",
    "dynpix_jax.backbones.mobilenet_names": "mobilenetv2 se_mobilenetv2",
    "dynpix_jax.backbones.vgg_names": "vgg16 vgg16_bn",
    "dynpix_jax.papers.mdeq.weight_names": "mdeq_small mdeq_xl",
    "dynpix_jax.papers.anytime.weight_names": "hrnet_w18s1 hrnet_w18s2 hrnet_w18 hrnet_w32 "
    "hrnet_w48 hrnet_w32_pose hrnet_w48_pose anytime_w18s2 anytime_w48",
}
ARCHITECTURES: Registry[Callable[[str], Architecture]] = Registry(
    "architecture",
    {name: f"{module}:architecture" for module, names in _FAMILIES.items() for name in names.split()},
)
"""Name -> function of the name that gives what an import needs to know."""

_CLASSES = 1000
# A counter that only serves a cumulative average in training.
_COUNTER = re.compile(r"(.*\.)?num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """Which tensors were used.

    Attributes:
        loaded: Our flat names that were filled.
        missing: Our names for which the file has nothing.
        unexpected: Names in the file for which the architecture has no place.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def architecture(name: str) -> Architecture:
    """The architecture of that name, as an import needs it.

    Raises:
        UserError: There is none.
    """
    return ARCHITECTURES.resolve(name, "--arch")(name)


@functools.cache
def expected_shapes(arch: str, classes: int = _CLASSES) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all variables of the architecture with a classifier, by flat name ("params/fc/bias")."""
    init = architecture(arch).model(classes).init
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def import_weights(arch: str, source: str | os.PathLike[str]) -> tuple[dict[str, Any], ImportReport]:
    """Reads a file of published weights into nested float32 variables.

    Args:
        arch: One of ``ARCHITECTURES``, or "package.module:function".
        source: .safetensors, .npz, .pth or .pt, under the architecture's published names, or ours.

    Returns:
        The variables, without those that the file lacks, and what became of each tensor.

    Raises:
        UserError: An unreadable file, another architecture's weights, a shape that does not fit, a value that
            is not finite, or no tensor that fits.
    """
    source = Path(source)
    network = architecture(arch)  # an unknown name is reported before the file is read
    tensors: Tensors = read_tensors(source)
    if native := is_native(tensors):
        check_architecture(source, arch)
    else:
        try:
            tensors = network.prepare(tensors)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    expected = expected_shapes(arch, _classes(network, tensors))

    loaded: dict[str, np.ndarray] = {}
    unexpected = []
    for name, array in tensors.items():
        if _COUNTER.fullmatch(name) or network.is_dropped(name):
            continue
        target = Target(name, -1, vector) if native else network.translate(name)
        if target is None or target.name not in expected:
            unexpected.append(name)
        else:
            try:
                loaded[target.name] = _converted(array, target, expected[target.name], arch)
            except ValueError as error:
                raise UserError(f"{source}: {name} has {error}") from None
    if not loaded:
        raise UserError(
            f"{source}: none of its {len(tensors)} tensors belongs to {arch}; "
            f"the first is {next(iter(tensors))!r}, expected {network.example}"
        )
    missing = tuple(name for name in sorted(expected) if name not in loaded)
    report = ImportReport(tuple(sorted(loaded)), missing, tuple(sorted(unexpected)))
    return traverse_util.unflatten_dict(loaded, sep="/"), report


def _converted(array: np.ndarray, target: Target, shape: tuple[int, ...], arch: str) -> np.ndarray:
    """The tensor in our layout, float32; ValueError for another shape or values that are not finite."""
    fits = target.ndim in (-1, array.ndim)
    converted = target.convert(array) if fits else array
    if not fits or converted.shape != shape:
        layout = f" ({converted.shape} in our layout)" if converted.shape != array.shape else ""
        raise ValueError(f"shape {array.shape}{layout}, but {arch} expects {shape} for {target.name}")
    converted = np.ascontiguousarray(converted, dtype=np.float32)
    if not np.isfinite(converted).all():
        raise ValueError("values that are not finite")
    return converted


def _classes(network: Architecture, tensors: Tensors) -> int:
    """Number of classes of the file's classifier; nothing else of the network depends on it."""
    theirs, ours = network.classifier
    if ours in tensors:
        return tensors[ours].shape[-1] if tensors[ours].ndim >= 2 else _CLASSES
    return tensors[theirs].shape[0] if theirs in tensors and tensors[theirs].ndim >= 2 else _CLASSES
