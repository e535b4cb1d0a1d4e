"""The shapes of the papers' layers, shared by tests and benchmarks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolution on one image.

    Attributes:
      name: stage and image size.
      size: (H, W) of the layer's input.
      channels: Cin.
      features: Cout.
      strides: of rows and columns.
      dilation: of the kernel.
      kernel_size: (kh, kw).
    """

    name: str
    size: tuple[int, int]
    channels: int
    features: int
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    kernel_size: tuple[int, int] = (3, 3)


def _halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    height, width = size
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def _pag_resnet50(image: tuple[int, int]) -> tuple[ConvSpec, ...]:
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

ALL = PAG_RESNET50_BSDS + PAG_RESNET50_NYU
