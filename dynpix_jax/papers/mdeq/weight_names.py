"""Maps names and layouts of MDEQ's official checkpoints to ours (source: locuslab/mdeq, lib/models).

They hold the tensors of f four times, because one module has four parents: ``fullstage`` is read, the others
are dropped. Heads of classifiers are not read.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from dynpix_jax.backbones.pretrained import (
    Architecture,
    Names,
    Target,
    conv_kernel,
    norm_target,
    vector,
    without_wrappers,
)
from dynpix_jax.papers.mdeq.config import CellConfig, MdeqConfig
from dynpix_jax.papers.mdeq.network import MdeqNetwork

_COPIES = re.compile(r"(fullstage_copy|deq)\..*")
_OTHER_HEADS = re.compile(r"(incre_modules|downsamp_modules|final_layer|classifier)\..*")

_BLOCK = r"fullstage\.branches\.(?P<i>\d)\.blocks\.0\."
_FUSE = r"fullstage\.fuse_layers\.(?P<i>\d)\.(?P<j>\d)\.net\."
_POST = r"fullstage\.post_fuse_layers\.(?P<i>\d)\."

# (their module, ours). {i}, {j}, {k} are groups of the pattern.
_CONVS = (
    (r"downsample\.0", "stem/conv1"),
    (r"downsample\.3", "stem/conv2"),
    (r"stage0\.0", "stem/conv3"),
    (_BLOCK + r"conv(?P<k>[12])", "cell/branch_{i}/conv{k}"),
    (_FUSE + r"conv", "cell/fuse_{j}_to_{i}/conv"),
    (_FUSE + r"(?P<k>\d)\.conv", "cell/fuse_{j}_to_{i}/conv_{k}"),
    (_POST + r"conv", "cell/post_conv_{i}"),
    (r"last_layer\.0", "head/conv1"),
    (r"last_layer\.3", "head/conv2"),
)
_NORMS = (
    (r"downsample\.1", "stem/bn1"),
    (r"downsample\.4", "stem/bn2"),
    (r"stage0\.1", "stem/bn3"),
    (_BLOCK + r"gn(?P<k>[123])", "cell/branch_{i}/gn{k}"),
    (_FUSE + r"gnorm", "cell/fuse_{j}_to_{i}/gn"),
    (_FUSE + r"(?P<k>\d)\.gnorm", "cell/fuse_{j}_to_{i}/gn_{k}"),
    (_POST + r"gnorm", "cell/post_gn_{i}"),
    (r"last_layer\.1", "head/bn1"),
)


def _lengths(array: np.ndarray) -> np.ndarray:
    """(out, 1, 1, 1) -> (out,)."""
    return array.reshape(-1) if array.size == len(array) else array


_CONV_LEAVES = {
    "weight": ("params/{}/kernel", 4, conv_kernel),
    "weight_v": ("params/{}/kernel", 4, conv_kernel),
    "weight_g": ("params/{}/gain", 4, _lengths),
    "bias": ("params/{}/bias", 1, vector),
}

CELLS = {
    "mdeq_small": CellConfig(),
    "mdeq_xl": CellConfig(channels=(88, 176, 352, 704), expansion=6, dropout=0.04),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name, one of ``CELLS``."""
    config = MdeqConfig("mdeq", cell=CELLS[name])
    names = published(config)
    return Architecture(
        **{field.name: getattr(names, field.name) for field in dataclasses.fields(names)},
        model=lambda classes: MdeqNetwork(config, classes),
        classifier=("last_layer.3.weight", "params/head/conv2/kernel"),
    )


def published(config: MdeqConfig) -> Names:
    """The names of the official checkpoints; those of all sizes are the same."""
    return Names(
        translate,
        "those of the official checkpoints (model.downsample.0.weight, model.fullstage.branches.0...)",
        is_dropped,
        lambda tensors, _: without_wrappers(tensors),
    )


def is_dropped(name: str) -> bool:
    """Whether the tensor is a copy of another one, or belongs to a head that is not read."""
    return any(pattern.fullmatch(name) for pattern in (_COPIES, _OTHER_HEADS))


def translate(name: str) -> Target | None:
    """Target of an MDEQ tensor; None for an unknown name."""
    module, _, leaf = name.rpartition(".")
    for pattern, ours in _CONVS:
        if leaf in _CONV_LEAVES and (match := re.fullmatch(pattern, module)):
            place, ndim, convert = _CONV_LEAVES[leaf]
            return Target(place.format(ours.format(**match.groupdict())), ndim, convert)
    for pattern, ours in _NORMS:
        if match := re.fullmatch(pattern, module):
            return norm_target(ours.format(**match.groupdict()), leaf)
    return None
