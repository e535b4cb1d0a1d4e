"""Names and layouts of MDEQ's official checkpoints in our terms (source: locuslab/mdeq, lib/models).

They hold the tensors of f four times, as the same module has four parents: ``fullstage`` is read, the others
are dropped. Those of a classifier have no head that we know.
"""

from __future__ import annotations

import re

import numpy as np

from dynpix_jax.weights.torch_names import Target, conv_kernel, vector

_PREFIX = re.compile(r"^((module|model)\.)+")
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
_NORM_LEAVES = {
    "weight": ("params/{}/scale", 1, vector),
    "bias": ("params/{}/bias", 1, vector),
    "running_mean": ("batch_stats/{}/mean", 1, vector),
    "running_var": ("batch_stats/{}/var", 1, vector),
}


def is_dropped(name: str) -> bool:
    """Whether the tensor is a copy of another, or of a head that is not ours."""
    name = _PREFIX.sub("", name, count=1)
    return any(pattern.fullmatch(name) for pattern in (_COPIES, _OTHER_HEADS))


def translate(name: str) -> Target | None:
    """Our place for a tensor of MDEQ, None for a name that it does not have."""
    module, _, leaf = _PREFIX.sub("", name, count=1).rpartition(".")
    for table, leaves in ((_CONVS, _CONV_LEAVES), (_NORMS, _NORM_LEAVES)):
        for pattern, ours in table:
            if leaf in leaves and (match := re.fullmatch(pattern, module)):
                place, ndim, convert = leaves[leaf]
                return Target(place.format(ours.format(**match.groupdict())), ndim, convert)
    return None
