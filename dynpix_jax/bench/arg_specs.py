"""The shapes of the papers' layers, for measurements and tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.ops.conv import Pair, conv_output_size


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolution on one image.

    Attributes:
        name: Network or stage, layer, size of the image.
        size: (H, W) of the layer's input.
        channels: Cin.
        features: Cout.
        strides: Strides of rows and columns.
        dilation: Dilation of the kernel.
        kernel_size: (kh, kw).
    """

    name: str
    size: Pair
    channels: int
    features: int
    strides: Pair = (1, 1)
    dilation: Pair = (1, 1)
    kernel_size: Pair = (3, 3)

    @property
    def output_size(self) -> Pair:
        """(Ho, Wo) of the output, and of its mask."""
        return conv_output_size(self.size, self.kernel_size, self.strides, self.dilation)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense convolution of one image."""
        return math.prod((*self.output_size, *self.kernel_size, self.channels, self.features))

    def __str__(self) -> str:
        """ "res4_321x481: 41x61, 256 -> 256 channels, 3x3, dilation 2; 1.48e9 MACs"."""
        parts = [f"{self.channels} -> {self.features} channels", "x".join(map(str, self.kernel_size))]
        parts += [f"stride {self.strides[0]}"] if self.strides != (1, 1) else []
        parts += [f"dilation {self.dilation[0]}"] if self.dilation != (1, 1) else []
        return f"{self.name}: {self.size[0]}x{self.size[1]}, {', '.join(parts)}; {self.macs / 1e9:.3g}e9 MACs"


def _halved(size: Pair, times: int) -> Pair:
    height, width = size
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def _pag_resnet50(image: Pair) -> tuple[ConvSpec, ...]:
    # Output stride 8: res4 and res5 keep the resolution of res3 and are dilated instead. The stride of res3
    # sits on its first 1x1 convolution (Caffe's ResNet, the papers'), so that every gated 3x3 has stride 1.
    size = f"{image[0]}x{image[1]}"
    return (
        ConvSpec(f"res2_{size}", _halved(image, 2), 64, 64),
        ConvSpec(f"res3_{size}", _halved(image, 3), 128, 128),
        ConvSpec(f"res4_{size}", _halved(image, 3), 256, 256, dilation=(2, 2)),
        ConvSpec(f"res5_{size}", _halved(image, 3), 512, 512, dilation=(4, 4)),
    )


PAG_RESNET50_BSDS = _pag_resnet50((321, 481))
"""The gated 3x3 convolutions of Res2-Res5 on a BSDS500 image."""

PAG_RESNET50_NYU = _pag_resnet50((480, 640))
"""The gated 3x3 convolutions of Res2-Res5 on a NYU Depth v2 image."""


def _hrnet(network: str, width: int, image: Pair) -> tuple[ConvSpec, ...]:
    # Four branches at 1/4 to 1/32, each with twice the channels of the one above. The anytime paper masks the
    # 3x3 of their blocks and the strided 3x3 that hand a branch down to the next.
    size = f"{image[0]}x{image[1]}"
    branches = tuple(
        ConvSpec(f"hrnet_{network}_branch{i + 1}_{size}", _halved(image, 2 + i), width << i, width << i)
        for i in range(4)
    )
    down = ConvSpec(f"hrnet_{network}_down_{size}", _halved(image, 2), width, 2 * width, strides=(2, 2))
    return (*branches, down)


HRNET_W18 = _hrnet("w18", 18, (1024, 2048))
"""HRNet-W18 on a Cityscapes image: the four branches, and the step down from the first to the second."""

HRNET_W48 = _hrnet("w48", 48, (1024, 2048))
"""HRNet-W48 on a Cityscapes image, likewise."""

HRNET_W32_POSE = _hrnet("w32", 32, (256, 256))
"""HRNet-W32 on a crop of a person, likewise."""

ALL = PAG_RESNET50_BSDS + PAG_RESNET50_NYU + HRNET_W18 + HRNET_W48 + HRNET_W32_POSE


PERSPECTIVE_POOLING = tuple(
    ConvSpec(f"pooling_{height}x{width}", _halved((height, width), 3), 512, 512)
    for height, width in ((425, 560), (800, 800))
)
"""A branch of depth-aware pooling on an image of NYUv2, and on a crop of Cityscapes; not among ``ALL``, whose
layers are masked by gates."""


def find(name: str, specs: Sequence[ConvSpec] = ALL) -> ConvSpec:
    """The spec of that name; a UserError if there is none."""
    named = {spec.name: spec for spec in specs}
    if name not in named:
        raise UserError(f"spec {name}: no such layer here; {suggest(name, named)}")
    return named[name]
