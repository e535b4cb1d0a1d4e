"""HRNet (Wang et al., PAMI 2020): branches of four resolutions side by side, joined after every module.

A stem and bottlenecks at a quarter of the image's resolution (stage 1); stages 2, 3 and 4 each begin one more
branch at half the resolution of the lowest. Modules are residual blocks on every branch, then sums over all
branches brought to each other's resolution. Names of parameters follow the released code: ``conv1`` ...
``layer1_0``, ``transition2_2``, ``stage3_1/branch0_2/conv1``, ``stage3_1/fuse_2_0_1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import flax.linen as nn
import jax

from dynpix_jax.backbones.resnet import StageInfo
from dynpix_jax.core.errors import suggest
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.masked_conv import ConvNorm, Masking
from dynpix_jax.nn.residual import BlockSpec, Bottleneck
from dynpix_jax.ops.resize import resize_bilinear, resize_nearest

STAGES = ("stage1", "stage2", "stage3", "stage4")
STEM = 64


class Arch(NamedTuple):
    """width: channels of the highest branch. layer1: bottlenecks of stage 1 and their width. modules: of
    stages 2, 3, 4. blocks: residual blocks of a branch in one module."""

    width: int
    layer1: tuple[int, int]
    modules: tuple[int, int, int]
    blocks: int


ARCHITECTURES: dict[str, Arch] = {
    "w18s1": Arch(16, (1, 32), (1, 1, 1), 2),
    "w18s2": Arch(18, (2, 64), (1, 3, 2), 2),
    "w18": Arch(18, (4, 64), (1, 4, 3), 4),
    "w32": Arch(32, (4, 64), (1, 4, 3), 4),
    "w48": Arch(48, (4, 64), (1, 4, 3), 4),
}
"""w18s1 and w18s2 are HRNet-W18-Small-v1 and -v2; the anytime paper's W18 is the latter."""


@dataclass(frozen=True)
class HRNetConfig:
    """Section ``model.backbone``.

    arch: one of ARCHITECTURES. width, blocks: in place of the architecture's own; 0 keeps those.
    form: ``segmentation`` (maps are enlarged bilinearly, running averages of norms move by .01) or ``pose``
    (nearest, by .1, and the last module gives its highest branch alone).
    align_corners: of the bilinear resizing; True in the weights of the OCR branch.
    frozen_norm: stored moments in training too.
    """

    arch: str = "w48"
    width: int = 0
    blocks: int = 0
    form: Literal["segmentation", "pose"] = "segmentation"
    align_corners: bool = False
    frozen_norm: bool = False

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch: {self.arch!r}; {suggest(self.arch, ARCHITECTURES)}")
        for name in ("width", "blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")
        if self.align_corners and self.form == "pose":
            raise ValueError("align_corners: is not read with form 'pose', which enlarges by repetition")

    @property
    def shape(self) -> Arch:
        """The architecture's numbers."""
        shape = ARCHITECTURES[self.arch]
        return shape._replace(width=self.width or shape.width, blocks=self.blocks or shape.blocks)

    @property
    def momentum(self) -> float:
        """Of running averages, in our sense: the share that stays."""
        return 0.99 if self.form == "segmentation" else 0.9


def branch_channels(config: HRNetConfig, stage: int) -> tuple[int, ...]:
    """Channels of the branches, from the highest resolution down, after ``stage`` (1 to 4)."""
    shape = config.shape
    if stage == 1:
        return (4 * shape.layer1[1],)
    count = 1 if stage == 4 and config.form == "pose" else stage
    return tuple(shape.width * 2**branch for branch in range(count))


def feature_info(config: HRNetConfig) -> tuple[tuple[StageInfo, ...], ...]:
    """Name, channels and stride of each branch ("stage3/1"), stage by stage."""
    return tuple(
        tuple(
            StageInfo(f"{name}/{branch}", channels, 4 * 2**branch)
            for branch, channels in enumerate(branch_channels(config, number))
        )
        for number, name in enumerate(STAGES, 1)
    )


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, ReLU(x + F2(F1(x))); (B, H, W, features) to the same."""

    features: int
    frozen_norm: bool
    momentum: float
    adaptive: bool

    def setup(self) -> None:
        c, rest = self.features, (False, self.frozen_norm, self.momentum, self.adaptive)
        self.conv1 = ConvNorm(c, c, 3, 1, True, *rest)
        self.conv2 = ConvNorm(c, c, 3, 1, False, *rest)

    def __call__(self, x: Array, masking: Masking | None, *, train: bool) -> Array:
        y = self.conv2(self.conv1(x, masking, train=train), masking, train=train)
        return jax.nn.relu(x + y)


class Module(nn.Module):
    """Residual blocks on every branch, then their fusion into the first ``outputs`` branches."""

    config: HRNetConfig
    channels: tuple[int, ...]
    outputs: int
    adaptive: bool

    def setup(self) -> None:
        config, rest = self.config, (self.config.frozen_norm, self.config.momentum, self.adaptive)
        for branch, features in enumerate(self.channels):
            for block in range(config.shape.blocks):
                setattr(self, f"branch{branch}_{block}", Block(features, *rest))
        for to in range(self.outputs):
            for source, features in enumerate(self.channels):
                if source > to:
                    unit = ConvNorm(features, self.channels[to], 1, 1, False, False, *rest)
                    setattr(self, f"fuse_{to}_{source}", unit)
                for step in range(to - source):
                    last = step == to - source - 1
                    out = self.channels[to] if last else features
                    unit = ConvNorm(features, out, 3, 2, not last, False, *rest)
                    setattr(self, f"fuse_{to}_{source}_{step}", unit)

    def __call__(self, xs: Sequence[Array], masking: Masking | None, *, train: bool) -> tuple[Array, ...]:
        maps = []
        for branch, x in enumerate(xs):
            blocks = [getattr(self, f"branch{branch}_{block}") for block in range(self.config.shape.blocks)]
            if masking is not None and masking.mode == "sparse":
                x = masking.residual_blocks(x, [(b.conv1.layer(), b.conv2.layer()) for b in blocks])
            else:
                for block in blocks:
                    x = block(x, masking, train=train)
            maps.append(x)
        return tuple(self._fused(maps, to, masking, train) for to in range(self.outputs))

    def _fused(self, maps: Sequence[Array], to: int, masking: Masking | None, train: bool) -> Array:
        size, total = (maps[to].shape[1], maps[to].shape[2]), None
        for source, x in enumerate(maps):
            if source > to:
                x = getattr(self, f"fuse_{to}_{source}")(x, masking, train=train)
                x = enlarge(x, size, self.config)
            for step in range(to - source):
                x = getattr(self, f"fuse_{to}_{source}_{step}")(x, masking, train=train)
            total = x if total is None else total + x
        return jax.nn.relu(cast(Array, total))


def enlarge(x: Array, size: tuple[int, int], config: HRNetConfig) -> Array:
    """(B, h, w, C) at a higher branch's resolution."""
    if config.form == "pose":
        return resize_nearest(x, size)
    return resize_bilinear(x, size, config.align_corners)


class HRNet(nn.Module):
    """Normalised images (B, H, W, 3) -> the maps of each stage, highest resolution (a quarter) first.

    ``adaptive_from``: the convolutions of that stage (2, 3 or 4) and those after it take masks; 5: none do.
    `first` and `stage` run it piece by piece.
    """

    config: HRNetConfig
    adaptive_from: int = 5

    def setup(self) -> None:
        config, shape = self.config, self.config.shape
        norm = (config.frozen_norm, config.momentum)
        self.conv1 = ConvNorm(3, STEM, 3, 2, True, False, *norm)
        self.conv2 = ConvNorm(STEM, STEM, 3, 2, True, False, *norm)
        count, width = shape.layer1
        for block in range(count):
            spec = BlockSpec(
                f"layer1_{block}",
                4 * width if block else STEM,
                width,
                stride_in_1x1=False,
                frozen_norm=config.frozen_norm,
                momentum=config.momentum,
            )
            setattr(self, spec.name, Bottleneck(spec))
        for number in (2, 3, 4):
            adaptive = number >= self.adaptive_from
            before = branch_channels(config, number - 1)
            now = tuple(shape.width * 2**branch for branch in range(number))
            for branch, features in enumerate(now):
                new = branch >= len(before)
                if new or before[branch] != features:
                    source = before[-1] if new else before[branch]
                    unit = ConvNorm(source, features, 3, 1 + new, True, False, *norm, adaptive)
                    setattr(self, f"transition{number - 1}_{branch}", unit)
            modules = shape.modules[number - 2]
            for index in range(modules):
                last = number == 4 and index == modules - 1
                outputs = len(branch_channels(config, 4)) if last else number
                setattr(self, f"stage{number}_{index}", Module(config, now, outputs, adaptive))

    def first(self, images: Array, *, train: bool = False) -> tuple[Array]:
        """Stem and stage 1, which no mask touches."""
        with jax.named_scope("stem"):
            x = self.conv2(self.conv1(images, train=train), train=train)
        with jax.named_scope(STAGES[0]):
            for block in range(self.config.shape.layer1[0]):
                x = getattr(self, f"layer1_{block}")(x, train=train)
        return (x,)

    def stage(
        self, number: int, xs: Sequence[Array], masking: Masking | None = None, *, train: bool = False
    ) -> tuple[Array, ...]:
        """Stage ``number`` (2, 3, 4) from the maps of the stage before."""
        with jax.named_scope(STAGES[number - 1]):  # transitions too, for `flops`
            return self._stage(number, xs, masking, train)

    def _stage(
        self, number: int, xs: Sequence[Array], masking: Masking | None, train: bool
    ) -> tuple[Array, ...]:
        maps = []
        for branch in range(number):
            x = xs[min(branch, len(xs) - 1)]
            name = f"transition{number - 1}_{branch}"
            # Branches that keep their channels pass unchanged.
            maps.append(getattr(self, name)(x, masking, train=train) if hasattr(self, name) else x)
        for index in range(self.config.shape.modules[number - 2]):
            maps = list(getattr(self, f"stage{number}_{index}")(maps, masking, train=train))
        return tuple(maps)

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, tuple[Array, ...]]:
        features: dict[str, tuple[Array, ...]] = {STAGES[0]: self.first(images, train=train)}
        for number in (2, 3, 4):
            before = features[STAGES[number - 2]]
            features[STAGES[number - 1]] = self.stage(number, before, train=train)
        return features
