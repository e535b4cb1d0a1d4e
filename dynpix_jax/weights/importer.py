"""Pretrained weights of other libraries as variables of our networks."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dynpix_jax.backbones.hrnet import ARCHITECTURES as HRNETS
from dynpix_jax.backbones.hrnet import HRNetConfig
from dynpix_jax.backbones.mobilenet import MobileNetConfig, MobileNetV2
from dynpix_jax.backbones.resnet import BackboneConfig, ResNet, block_specs
from dynpix_jax.backbones.se_resnet import se_resnet
from dynpix_jax.backbones.vgg import VGG, VGGConfig
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.papers.anytime.config import AdaptivityConfig, AnytimeConfig, HeadConfig
from dynpix_jax.papers.anytime.network import AnytimeNetwork
from dynpix_jax.papers.mdeq.config import CellConfig, MdeqConfig
from dynpix_jax.papers.mdeq.network import MdeqNetwork
from dynpix_jax.weights import astmt_names, hrnet_names, mdeq_names, torch_names, vgg_names
from dynpix_jax.weights.readers import read_tensors
from dynpix_jax.weights.weights_file import check_architecture, is_native

_DEPTHS = {"resnet18": 18, "resnet26": 26, "resnet34": 34, "resnet50": 50, "resnet101": 101}
_SE_DEPTHS = {"se_resnet26": 26, "se_resnet50": 50, "se_resnet101": 101}
_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What an import needs to know of an architecture.

    model: the network of all tensors that can be imported, with so many classes.
    translate: a tensor's name in the file -> its place with us, None for a name that it does not have.
    example: names that files have, for messages.
    classifier: (name in the file, our name) of the kernel that has as many outputs as there are classes.
    is_dropped: which names have no counterpart on purpose.
    rename: brings a file's names into the form that ``translate`` reads, where there are several.
    """

    model: Callable[[int], nn.Module]
    translate: Callable[[str], torch_names.Target | None]
    example: str
    classifier: tuple[str, str] = ("fc.weight", "params/fc/kernel")
    is_dropped: Callable[[str], bool] = lambda name: False
    rename: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = dict


def _resnet(depth: int) -> Architecture:
    config = BackboneConfig(depth=depth, output_stride=32)
    return Architecture(
        lambda classes: ResNet(config, classes=classes),
        torch_names.translate,
        "torchvision's names (conv1.weight, layer1.0.conv1.weight, ...)",
    )


def _se_resnet(depth: int) -> Architecture:
    config = BackboneConfig(depth=depth, output_stride=32)
    return Architecture(
        lambda classes: se_resnet(config, classes=classes),
        astmt_names.translate_se_resnet,
        "torchvision's names and those of SE (layer1.0.se.fc.0.weight)",
    )


def _mobilenet(se: bool) -> Architecture:
    return Architecture(
        lambda _: MobileNetV2(MobileNetConfig(output_stride=32, se=se)),
        astmt_names.translate_mobilenet,
        "torchvision's names (features.0.0.weight, features.1.conv.0.0.weight, ...)",
        is_dropped=astmt_names.is_classifier,
        rename=astmt_names.flat_to_torchvision,
    )


def _vgg(batch_norm: bool) -> Architecture:
    config = VGGConfig(batch_norm=batch_norm)
    return Architecture(
        lambda _: VGG(config, taps=("fc7",)),
        functools.partial(vgg_names.translate, batch_norm=batch_norm),
        "torchvision's names (features.0.weight, ..., classifier.0.weight) or Caffe's (conv1_1.weight, ...)",
    )


def _mdeq(cell: CellConfig) -> Architecture:
    return Architecture(
        lambda classes: MdeqNetwork(MdeqConfig("mdeq", cell=cell), classes),
        mdeq_names.translate,
        "those of the official checkpoints (model.downsample.0.weight, model.fullstage.branches.0...)",
        ("last_layer.3.weight", "params/head/conv2/kernel"),
        mdeq_names.is_dropped,
    )


def _hrnet(arch: str, kind: str) -> Architecture:
    """kind: of the checkpoints, "segmentation" (or classification), "pose" or "anytime" (its full model)."""
    pose, anytime = kind == "pose", kind == "anytime"
    config = AnytimeConfig(
        "anytime",
        "pose" if pose else "segmentation",
        backbone=HRNetConfig(arch, form="pose" if pose else "segmentation"),
        exits=(1, 2, 3, 4) if anytime else (4,),
        weights=(1.0,) * (4 if anytime else 1),
        heads=HeadConfig(
            plain="single" if pose else "two_layers",
            inputs="highest" if pose else "concat",
            features=128 if arch == "w48" else 64,
        ),
        adaptivity=AdaptivityConfig() if anytime else None,
    )
    return Architecture(
        lambda classes: AnytimeNetwork(config, classes),
        hrnet_names.translate,
        "HRNet's names (conv1.weight, layer1.0.conv1.weight, stage2.0.branches.0.0.conv1.weight, ...)",
        ("final_layer.weight" if pose else "last_layer.3.weight", "params/exit4/classify/conv/kernel"),
        hrnet_names.is_dropped,
        functools.partial(hrnet_names.check_blocks, arch),
    )


_TABLE: Mapping[str, Architecture] = {
    **{name: _resnet(depth) for name, depth in _DEPTHS.items()},
    **{name: _se_resnet(depth) for name, depth in _SE_DEPTHS.items()},
    "mobilenetv2": _mobilenet(se=False),
    "se_mobilenetv2": _mobilenet(se=True),
    "vgg16": _vgg(batch_norm=False),
    "vgg16_bn": _vgg(batch_norm=True),
    "mdeq_small": _mdeq(CellConfig()),
    "mdeq_xl": _mdeq(CellConfig(channels=(88, 176, 352, 704), expansion=6, dropout=0.04)),
    **{f"hrnet_{arch}": _hrnet(arch, "segmentation") for arch in HRNETS},
    **{f"hrnet_{arch}_pose": _hrnet(arch, "pose") for arch in ("w32", "w48")},
    **{f"anytime_{arch}": _hrnet(arch, "anytime") for arch in ("w18s2", "w48")},
}
ARCHITECTURES = tuple(_TABLE)


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What became of the tensors.

    loaded: our flat names that were filled. missing: our names for which the file has nothing. unexpected:
    names in the file for which the architecture has no place.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@functools.cache
def expected_shapes(arch: str, classes: int = _CLASSES) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all variables of the architecture with a classifier, by flat name ("params/fc/bias")."""
    if arch not in _TABLE:
        raise UserError(f"unknown architecture {arch!r}: {suggest(arch, ARCHITECTURES)}")
    variables = jax.eval_shape(_TABLE[arch].model(classes).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def _layout(arch: str) -> tuple[tuple[int, ...], bool]:
    stages = block_specs(BackboneConfig(depth=(_DEPTHS | _SE_DEPTHS)[arch]))
    return tuple(len(specs) for specs in stages), stages[0][0].expansion > 1


def _check_layout(source: Path, arch: str, tensors: Mapping[str, np.ndarray]) -> None:
    """A deeper network contains a shallower one's names and shapes: only the blocks tell them apart."""
    family = next((depths for depths in (_DEPTHS, _SE_DEPTHS) if arch in depths), None)
    if family is None:
        return
    found = torch_names.describe_layout(tensors)
    if found == _layout(arch):
        return
    same = [name for name in family if _layout(name) == found]
    if same:
        raise UserError(f"{source}: the tensors' names are those of {same[0]}, expected {arch}")


def _classes(arch: str, tensors: Mapping[str, np.ndarray]) -> int:
    """The classifier has as many classes as the file says: nothing else of the network depends on it."""
    theirs, ours = _TABLE[arch].classifier
    if is_native(tensors):
        return tensors[ours].shape[-1] if ours in tensors and tensors[ours].ndim >= 2 else _CLASSES
    found = [array for name, array in tensors.items() if name.removeprefix("model.") == theirs]
    return found[0].shape[0] if found and found[0].ndim >= 2 else _CLASSES


def _place(arch: str, name: str, native: bool) -> torch_names.Target | None:
    return torch_names.Target(name, -1, torch_names.vector) if native else _TABLE[arch].translate(name)


def import_weights(arch: str, source: str | os.PathLike[str]) -> tuple[dict[str, Any], ImportReport]:
    """Reads `source` (.safetensors, .npz, .pth, .pt) into nested float32 variables of `arch`.

    `arch` is one of ARCHITECTURES.
    Names may be torchvision's, of a VGG also Caffe's, of an MDEQ or SE-ResNet its authors', or our own.
    Tensors that are missing are left out of the result and reported.
    Raises UserError for an unreadable file, another architecture's weights, a shape that does not fit, a
    value that is not finite, or when no tensor fits at all.
    """
    source = Path(source)
    expected_shapes(arch)  # an unknown name is reported before the file is read
    tensors = read_tensors(source)
    native = is_native(tensors)
    if native:
        check_architecture(source, arch)
    else:
        tensors = _TABLE[arch].rename(tensors)
        _check_layout(source, arch, tensors)
    expected = expected_shapes(arch, _classes(arch, tensors))

    loaded: dict[str, np.ndarray] = {}
    unexpected = []
    for name, array in tensors.items():
        if torch_names.is_dropped(name) or _TABLE[arch].is_dropped(name):
            continue
        target = _place(arch, name, native)
        if target is None or target.name not in expected:
            unexpected.append(name)
            continue
        fits = target.ndim in (-1, array.ndim)
        converted = target.convert(array) if fits else array
        if not fits or converted.shape != expected[target.name]:
            raise UserError(
                f"{source}: {name} has shape {array.shape}{_as_ours(array, converted)}, "
                f"but {arch} expects {expected[target.name]} for {target.name}"
            )
        loaded[target.name] = np.ascontiguousarray(converted, dtype=np.float32)
        if not np.isfinite(loaded[target.name]).all():
            raise UserError(f"{source}: {name} has values that are not finite")
    if not loaded:
        raise UserError(
            f"{source}: none of its {len(tensors)} tensors belongs to {arch}; "
            f"the first is {next(iter(tensors))!r}, "
            f"expected {_TABLE[arch].example}"
        )
    missing = tuple(name for name in sorted(expected) if name not in loaded)
    report = ImportReport(tuple(sorted(loaded)), missing, tuple(sorted(unexpected)))
    return traverse_util.unflatten_dict(loaded, sep="/"), report


def _as_ours(array: np.ndarray, converted: np.ndarray) -> str:
    return f" ({converted.shape} in our layout)" if converted.shape != array.shape else ""
