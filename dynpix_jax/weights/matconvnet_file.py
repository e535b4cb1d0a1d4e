"""Networks of MatConvNet (`.mat`): DagNN's, as PAG and recurrent scene parsing release them, and SimpleNN's.

Tensors have the names of the parameters (`res2_1_1conv_f`); SimpleNN's, which have none, get those that
MatConvNet's own `DagNN.fromSimpleNN` gives them (`conv1_1f`, `conv1_1b`; of a batch norm `m`, `b` and `x`).

| parameter | shape |
|---|---|
| filter | (height, width, in, out); of a transposed convolution (height, width, out, in) |
| bias, a norm's multiplier and bias | (channels,) |
| a norm's moments | (channels, 2): mean, and sigma = sqrt(variance + epsilon) |

PAG's `attentionChannel` is a norm with moments that never change; they lie in the layer, and are given as
`LAYER.globalMean` and `LAYER.globalVariance`. The latter is the standard deviation whatever its name says;
1e-5 is added to it and not to its square.

Source: MatConvNet's +dagnn/@DagNN/saveobj.m and fromSimpleNN.m, PAG's attentionChannel.m.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.backbones.pretrained import Layer
from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.matlab_file import Unread, read_matlab
from dynpix_jax.weights.network_file import (
    Convention,
    Convolution,
    NetworkFile,
    channel_order,
    decimals,
    stride_in_1x1,
)

_FROZEN_MOMENTS = ("globalMean", "globalVariance")
_SAVE_STRUCT = "in MATLAB: net = net.saveobj(); save('net.mat', 'net')"


def _filter(value: np.ndarray) -> np.ndarray:
    if value.ndim > 4:
        raise ValueError(f"a filter of shape {value.shape}, expected four axes")
    return value.reshape(value.shape + (1,) * (4 - value.ndim))


def _vector(value: np.ndarray) -> np.ndarray:
    if value.size != max(value.shape):
        raise ValueError(f"shape {value.shape} where one number a channel is expected")
    return value.ravel()


def _moments(value: np.ndarray) -> np.ndarray:
    if value.ndim != 2 or value.shape[1] != 2:
        raise ValueError(f"moments of shape {value.shape}, expected (channels, 2)")
    return value


_Layout = Callable[[np.ndarray], np.ndarray]
# Of the parameters of a layer of DagNN's, or of SimpleNN's by MatConvNet's letters.
_LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    "dagnn.Conv": (_filter, _vector),
    "dagnn.ConvTranspose": (_filter, _vector),
    "dagnn.BatchNorm": (_vector, _vector, _moments),
}
_SIMPLE_LAYOUTS: dict[str, tuple[tuple[str, _Layout], ...]] = {
    "conv": (("f", _filter), ("b", _vector)),
    "convt": (("f", _filter), ("b", _vector)),
    "bnorm": (("m", _vector), ("b", _vector), ("x", _moments)),
}


def _listed(value: Any) -> list[Any]:
    """A struct array, a cell array, or what MATLAB gives for one of a single element, as a list."""
    return value if isinstance(value, list) else [value]


def _array(value: Any, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        kind = value.kind if isinstance(value, Unread) else type(value).__name__
        raise ValueError(f"{what} is {kind}, expected numbers")
    return value


def _largest(value: Any) -> int:
    """A stride or dilation: one number or two; 1 where there is none."""
    return max(map(int, value.ravel()), default=1) if isinstance(value, np.ndarray) else 1


def _convolution(geometry: dict[str, Any], kernel: np.ndarray) -> Convolution:
    return Convolution(
        kernel=(kernel.shape[0], kernel.shape[1]),
        inputs=kernel.shape[2],
        stride=_largest(geometry.get("stride")),
        dilation=_largest(geometry.get("dilate")),
    )


_Parts = tuple[dict[str, np.ndarray], dict[str, Convolution], list[Layer]]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in _listed(value) if isinstance(item, str) and item)


def _read_dag(net: dict[str, Any]) -> _Parts:
    tensors: dict[str, np.ndarray] = {}
    for parameter in _listed(net["params"]):
        name = parameter["name"]
        if name in tensors:
            raise ValueError(f"two parameters {name!r}")
        tensors[name] = _array(parameter["value"], f"parameter {name!r}")
    convolutions: dict[str, Convolution] = {}
    layers: list[Layer] = []
    arranged: set[str] = set()  # loops share their parameters
    for layer in _listed(net["layers"]):
        block = layer["block"] if isinstance(layer["block"], dict) else {}
        names = _texts(layer["params"])
        inputs, outputs = (_texts(layer.get(side, [])) for side in ("inputs", "outputs"))
        dilation = _largest(block.get("dilate"))
        layers.append(Layer(layer["name"], layer["type"], inputs, outputs, names, dilation))
        layouts = _LAYOUTS.get(layer["type"], (_vector,) * len(names))
        if len(names) > len(layouts):
            raise ValueError(f"layer {layer['name']!r} ({layer['type']}) has {len(names)} parameters")
        for name, layout in zip(names, layouts, strict=False):
            if name not in tensors:
                raise ValueError(f"layer {layer['name']!r} has a parameter {name!r} that is not there")
            if name not in arranged:
                tensors[name] = layout(tensors[name])
                arranged.add(name)
        if layer["type"] == "dagnn.Conv":
            convolutions[layer["name"]] = _convolution(block, tensors[names[0]])
        for field in _FROZEN_MOMENTS:
            if field in block:
                name = f"{layer['name']}.{field}"
                tensors[name] = _vector(_array(block[field], name))
    return tensors, convolutions, layers


def _simple_values(layer: dict[str, Any]) -> list[Any]:
    """A layer's parameters, in the form of any version of MatConvNet."""
    if "weights" in layer:
        return _listed(layer["weights"])
    return [layer[field] for field in ("filters", "biases") if field in layer]


def _read_simple(net: dict[str, Any]) -> _Parts:
    tensors: dict[str, np.ndarray] = {}
    convolutions: dict[str, Convolution] = {}
    layers: list[Layer] = []
    for number, layer in enumerate(_listed(net["layers"]), 1):
        name, kind = layer.get("name", f"layer{number}"), layer["type"]
        values = _simple_values(layer) if kind in _SIMPLE_LAYOUTS else []
        for (letter, layout), value in zip(_SIMPLE_LAYOUTS.get(kind, ()), values, strict=False):
            array = _array(value, f"{name}{letter}")
            if f"{name}{letter}" in tensors:
                raise ValueError(f"two layers {name!r}")
            if array.size:  # a convolution without a bias has an empty one
                tensors[f"{name}{letter}"] = layout(array)
        if kind == "conv":
            convolutions[name] = _convolution(layer, tensors[f"{name}f"])
        params: tuple[str, ...] = tuple(f"{name}{letter}" for letter, _ in _SIMPLE_LAYOUTS.get(kind, ()))
        params = tuple(param for param in params if param in tensors)
        inputs, outputs = (f"x{number - 1}",), (f"x{number}",)  # a chain: each layer reads the one before
        layers.append(Layer(name, kind, inputs, outputs, params, _largest(layer.get("dilate"))))
    return tensors, convolutions, layers


def _mean(net: dict[str, Any]) -> tuple[float, ...] | None:
    """The mean of each channel, of a mean image (height, width, channels) or of three numbers."""
    meta = net["meta"] if isinstance(net.get("meta"), dict) else net  # before 2015, not in `meta`
    normalization = meta.get("normalization")
    image = normalization.get("averageImage") if isinstance(normalization, dict) else None
    if not isinstance(image, np.ndarray) or not image.size:
        return None
    if image.ndim == 3 and image.shape[:2] != (1, 1):
        image = image.mean((0, 1), dtype=np.float64).astype(np.result_type(image, np.float32))
    return decimals(image)


def _network(path: Path, variables: dict[str, Any]) -> dict[str, Any]:
    """The one variable that is a network, by any name, or the variables themselves (`save -struct`)."""
    if "layers" in variables:
        return variables
    networks = [value for value in variables.values() if isinstance(value, dict) and "layers" in value]
    if len(networks) == 1:
        return networks[0]
    objects = [value.kind for value in variables.values() if isinstance(value, Unread)]
    if objects and not networks:
        raise UserError(f"{path}: holds an object ({objects[0]}), not a struct; {_SAVE_STRUCT}")
    raise UserError(
        f"{path}: holds {len(networks)} networks of MatConvNet, expected one; its variables are "
        f"{', '.join(sorted(variables)) or '(none)'}"
    )


def read_matconvnet(path: str | os.PathLike[str]) -> NetworkFile:
    """The network in a `.mat` file of MATLAB 5 to 7.3.

    Raises:
        UserError: A corrupt or truncated file, or one without a network. It names the file.
    """
    path = Path(path)
    net = _network(path, read_matlab(path))
    try:
        tensors, convolutions, layers = _read_dag(net) if "params" in net else _read_simple(net)
        mean = _mean(net)
    except KeyError as error:
        raise UserError(f"{path}: corrupt network of MatConvNet: no field {error}") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:  # values of unexpected kinds
        raise UserError(f"{path}: corrupt network of MatConvNet: {error}") from error
    convention = Convention(
        kernel_axes="HWIO",
        stride_in_1x1=stride_in_1x1(convolutions.values()),
        channel_order=channel_order(mean),
        mean=mean,
    )
    return NetworkFile(tensors, convention, convolutions, tuple(layers), "matconvnet")
