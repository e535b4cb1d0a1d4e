"""MatConvNet's tensors in PyTorch's terms, so that one table of names serves both.

A filter `NAME_f` (SimpleNN: `NAMEf`) becomes `NAME.weight`, its bias `NAME.bias`. A norm belongs to the
convolution whose output it reads, whatever its own name: `NAME.norm.weight`, `.bias`, `.running_mean`,
`.running_var`. Of all other tensors the names stay.
"""

from __future__ import annotations

import numpy as np

from dynpix_jax.backbones.pretrained import Layer
from dynpix_jax.weights.network_file import NetworkFile

EPSILON = 1e-5  # of nn.norm.BatchNorm, which adds it to the variance
_CHANNEL_EPSILON = 1e-5  # of PAG's attentionChannel, which adds it to the standard deviation
_CONVOLUTIONS = ("dagnn.Conv", "conv")
_NORMS = ("dagnn.BatchNorm", "bnorm", "attentionChannel")


def in_torch_terms(network: NetworkFile) -> dict[str, np.ndarray]:
    """The tensors of a MatConvNet file under PyTorch's names and in its layout.

    Raises:
        ValueError: A norm has a standard deviation of 0: it has never been trained.
    """
    tensors = dict(network.tensors)
    found: dict[str, np.ndarray] = {}
    convolutions = {
        variable: layer
        for layer in network.layers
        if layer.kind in _CONVOLUTIONS and layer.params
        for variable in layer.outputs
    }
    for layer in convolutions.values():
        base, names = _base(layer), layer.params
        for name, leaf in zip(names, ("weight", "bias"), strict=False):
            if name in tensors:  # loops share their parameters: the first has moved them
                array = tensors.pop(name)
                found[f"{base}.{leaf}"] = array.transpose(3, 2, 0, 1) if leaf == "weight" else array
    for layer in network.layers:
        source = convolutions.get(layer.inputs[0]) if layer.inputs else None
        if layer.kind in _NORMS and source is not None and len(layer.params) >= 2:
            _move_norm(layer, f"{_base(source)}.norm", tensors, found)
    return found | tensors


def _base(layer: Layer) -> str:
    kernel = layer.params[0]
    return kernel.removesuffix("_f") if kernel.endswith("_f") else kernel.removesuffix("f")


def _move_norm(layer: Layer, base: str, tensors: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    if f"{base}.weight" in found:  # of a loop before
        return
    moments = _moments(layer, tensors)
    if moments is None:
        return
    mean, variance = moments
    values = (tensors.pop(layer.params[0]), tensors.pop(layer.params[1]), mean, variance)
    for leaf, array in zip(("weight", "bias", "running_mean", "running_var"), values, strict=True):
        found[f"{base}.{leaf}"] = array


def _moments(layer: Layer, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, variance), taken out of ``tensors``; None if they are not there.

    The variance is such that our norm divides by what the file's divides by.
    """
    names = layer.params[2:3]
    if layer.kind == "attentionChannel":
        names = (f"{layer.name}.globalMean", f"{layer.name}.globalVariance")
    if not names or not set(names) <= set(tensors):
        return None
    parts = [tensors.pop(name) for name in names]
    mean, sigma = parts if len(parts) == 2 else parts[0].T
    sigma = sigma.astype(np.float64)
    if layer.kind == "attentionChannel":
        sigma = sigma + _CHANNEL_EPSILON
    if not np.all(sigma > 0):
        raise ValueError(f"layer {layer.name!r} has a standard deviation of 0: it has never been trained")
    return mean, sigma**2 - EPSILON
