"""`.caffemodel` files (PixelNet, HED, VGG): layers and weights as protocol buffers, read without Caffe.

Tensors are named by layer and place: `conv1_1.0` is the kernel and `conv1_1.1` the bias. A kernel is
(out, in, height, width), with groups (out, in / groups, height, width); an inner product is (out, in).

Source: caffe.proto of BVLC's Caffe, for the field numbers below as well.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import protobuf
from dynpix_jax.weights.network_file import (
    Convention,
    Convolution,
    NetworkFile,
    channel_order,
    decimals,
    stride_in_1x1,
)
from dynpix_jax.weights.protobuf import Message

_LAYERS, _LAYERS_V1 = 100, 2  # NetParameter
# LayerParameter and V1LayerParameter.
_FIELDS = {"name": 1, "type": 2, "blobs": 7, "transform": 100, "convolution": 106}
_FIELDS_V1 = {"name": 4, "type": 5, "blobs": 6, "transform": 36, "convolution": 10}
_V0 = 1  # in a V1LayerParameter: a layer of the first of all formats
_TYPES_V1 = {4: "Convolution", 39: "Deconvolution", 14: "InnerProduct"}
_MEAN_VALUE = 5  # TransformationParameter
_GROUP, _STRIDES, _DILATION = 5, (6, 13, 14), 18  # ConvolutionParameter
_DATA, _DOUBLE_DATA, _SHAPE = 5, 8, 7  # BlobProto
_OLD_SHAPE = (1, 2, 3, 4)  # also of BlobProto: num, channels, height, width
_DIM = 1  # BlobShape


def _shape(blob: Message, layer_type: str, index: int) -> tuple[int, ...]:
    """A blob's shape. Old blobs have four axes; those of vectors and matrices begin with ones."""
    if not any(number in blob for number in _OLD_SHAPE):
        shapes = protobuf.parts(blob, _SHAPE)
        return tuple(protobuf.integers(protobuf.parse(shapes[-1]), _DIM)) if shapes else ()
    shape = tuple((protobuf.integers(blob, number) or [0])[-1] for number in _OLD_SHAPE)
    kernel = index == 0 and layer_type in ("Convolution", "Deconvolution")
    axes = 4 if kernel else 2 if index == 0 and layer_type == "InnerProduct" else 1
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return shape


def _array(blob: Message, layer_type: str, index: int) -> np.ndarray:
    data = protobuf.reals(blob, _DATA, "<f4")
    if not data.size and _DOUBLE_DATA in blob:
        data = protobuf.reals(blob, _DOUBLE_DATA, "<f8")
    shape = _shape(blob, layer_type, index)
    if min(shape, default=0) < 0 or math.prod(shape) != data.size:
        raise ValueError(f"{data.size} numbers in a blob of shape {shape}")
    return data.reshape(shape).astype(data.dtype.newbyteorder("="), copy=False)


def _convolution(parameters: Message, kernel: np.ndarray) -> Convolution:
    strides = [value for number in _STRIDES for value in protobuf.integers(parameters, number)]
    groups = (protobuf.integers(parameters, _GROUP) or [1])[-1]
    return Convolution(
        kernel=(kernel.shape[2], kernel.shape[3]),
        inputs=kernel.shape[1] * groups,
        stride=max(strides, default=1),
        dilation=max(protobuf.integers(parameters, _DILATION), default=1),
    )


def _part(layer: Message, number: int) -> Message:
    values = protobuf.parts(layer, number)
    return protobuf.parse(values[-1]) if values else {}


class _Reader:
    """Gathers what the layers hold, one after the other."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.convolutions: dict[str, Convolution] = {}
        self.means: set[tuple[float, ...]] = set()

    def layer(self, data: memoryview, fields: Mapping[str, int]) -> None:
        layer = protobuf.parse(data)
        if fields is _FIELDS_V1:
            if _V0 in layer:
                raise ValueError(
                    "a layer of Caffe's first format; Caffe's upgrade_net_proto_binary rewrites such a file"
                )
            kind = _TYPES_V1.get((protobuf.integers(layer, fields["type"]) or [0])[-1], "")
        else:
            kind = protobuf.text(layer, fields["type"])
        name = protobuf.text(layer, fields["name"])
        for index, blob in enumerate(protobuf.parts(layer, fields["blobs"])):
            if f"{name}.{index}" in self.tensors:
                raise ValueError(f"two layers {name!r} with weights")
            try:
                self.tensors[f"{name}.{index}"] = _array(protobuf.parse(blob), kind, index)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        kernel = self.tensors.get(f"{name}.0")
        if kind == "Convolution" and kernel is not None and kernel.ndim == 4:
            self.convolutions[name] = _convolution(_part(layer, fields["convolution"]), kernel)
        mean = protobuf.reals(_part(layer, fields["transform"]), _MEAN_VALUE, "<f4")
        if mean.size:
            self.means.add(decimals(mean))


def read_caffemodel(path: str | os.PathLike[str]) -> NetworkFile:
    """The weights of a `.caffemodel` of any Caffe since 2014, with layers of either form.

    Returns:
        Its blobs and geometry. The mean is None unless all layers that subtract one subtract the same.

    Raises:
        UserError: A corrupt or truncated file, or one without weights. It names the file.
    """
    path = Path(path)
    reader = _Reader()
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        network = protobuf.parse(data)
        for number, fields in ((_LAYERS, _FIELDS), (_LAYERS_V1, _FIELDS_V1)):
            for layer in protobuf.parts(network, number):
                reader.layer(layer, fields)
    except (ValueError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path}: corrupt .caffemodel file: {error}") from error
    if not reader.tensors:
        raise UserError(f"{path}: holds no layer with weights: not a .caffemodel file")
    mean = next(iter(reader.means)) if len(reader.means) == 1 else None
    convention = Convention(
        kernel_axes="OIHW",
        stride_in_1x1=stride_in_1x1(reader.convolutions.values()),
        channel_order=channel_order(mean),
        mean=mean,
    )
    return NetworkFile(reader.tensors, convention, reader.convolutions, format="caffe")
