"""The content of a foreign weights file: tensors by name, and how to run the network.

| fact | MatConvNet's `.mat` | `.caffemodel` | PyTorch, safetensors, npz |
|---|---|---|---|
| kernels' axes | HWIO | OIHW | OIHW for PyTorch |
| strides, dilations | in the layers | in the layers | unknown |
| mean image | `meta.normalization` | `transform_param`, if the net has data layers | unknown |
| order of channels | from the mean | from the mean | unknown |

No format names the order of channels. The mean tells it: the red of natural images is brighter than their
blue, in ImageNet by 20 of 255. A file without a mean does not tell it; by their programs, the releases of PAG
and of recurrent scene parsing read RGB, those of PixelNet, HED and VGG BGR.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from dynpix_jax.backbones.pretrained import Layer

_IMAGE_CHANNELS = 4  # colour and depth: a convolution that reads no more reads the image


@dataclasses.dataclass(frozen=True)
class Convention:
    """How to run a network, as far as its file says; None where it does not.

    Attributes:
        kernel_axes: The axes of the kernels of its convolutions.
        stride_in_1x1: Whether a bottleneck that halves the resolution does so in its first 1x1 convolution
            (as Caffe's and MatConvNet's do) rather than in its 3x3 (as torchvision's).
        channel_order: Channel order of its images.
        mean: Subtracted from the channels, in that order, of images in 0..255.
    """

    kernel_axes: Literal["HWIO", "OIHW"] | None = None
    stride_in_1x1: bool | None = None
    channel_order: Literal["rgb", "bgr"] | None = None
    mean: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution."""

    kernel: tuple[int, int]
    inputs: int
    stride: int
    dilation: int


@dataclasses.dataclass(frozen=True)
class NetworkFile:
    """A network as its file has it.

    Attributes:
        tensors: Arrays by the file's names, in the file's layout.
        convention: How to run it.
        convolutions: Convolutions by the layer's name; empty where the file has no layers.
        layers: All layers, in the file's order; empty where the file has no graph of them.
        format: ``torch`` (of any version), ``matconvnet``, ``caffe``, or ``plain`` (safetensors, npz), which
            tells tensors by name and nothing else.
    """

    tensors: dict[str, np.ndarray]
    convention: Convention
    convolutions: Mapping[str, Convolution] = dataclasses.field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    format: Literal["torch", "matconvnet", "caffe", "plain"] = "plain"


def stride_in_1x1(convolutions: Iterable[Convolution]) -> bool | None:
    """Where bottlenecks have their stride, by the shapes alone.

    Both kinds of network have 1x1 convolutions of stride 2 (projections, at least); only torchvision's have
    3x3 convolutions of stride 2 behind the stem. A network without the former has no bottlenecks: None.
    """
    strided = [conv.kernel for conv in convolutions if conv.stride > 1 and conv.inputs > _IMAGE_CHANNELS]
    return all(kernel == (1, 1) for kernel in strided) if (1, 1) in strided else None


def channel_order(mean: tuple[float, ...] | None) -> Literal["rgb", "bgr"] | None:
    """The order of the channels of natural images with this mean."""
    if mean is None or len(mean) != 3 or mean[0] == mean[2]:
        return None
    return "rgb" if mean[0] > mean[2] else "bgr"


def decimals(values: np.ndarray) -> tuple[float, ...]:
    """The numbers as they were written down: float32's 103.939 is 103.939 and not 103.93900299072266."""
    return tuple(float(str(value)) for value in values.ravel())
