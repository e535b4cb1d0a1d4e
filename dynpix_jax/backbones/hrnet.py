"""HRNet (Wang et al., PAMI 2020): branches of four resolutions side by side, joined after every module.

A stem and bottlenecks at a quarter of the image's resolution (stage 1); stages 2, 3 and 4 each begin one more
branch at half the resolution of the lowest. Modules are residual blocks on every branch, then sums over all
branches brought to each other's resolution. Names of parameters follow the released code: ``conv1`` ...
``layer1_0``, ``transition2_2``, ``stage3_1/branch0_2/conv1``, ``stage3_1/fuse_2_0_1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, cast

import flax.linen as nn
import jax

from dynpix_jax.backbones.base import DEFAULTS, BackboneConfig, BuildOptions, Stage, normalize
from dynpix_jax.core.errors import suggest
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.masked_conv import ConvNorm, Masking
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.nn.residual import Bottleneck, ResidualSpec
from dynpix_jax.ops.resize import resize_bilinear, resize_nearest

STAGES = ("stage1", "stage2", "stage3", "stage4")
STEM = 64


class Arch(NamedTuple):
    """The numbers of an architecture.

    Attributes:
        width: Channels of the highest branch.
        layer1: Number of bottlenecks of stage 1, and their width.
        modules: Numbers of modules of stages 2, 3 and 4.
        blocks: Residual blocks of a branch in one module.
    """

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
class HRNetConfig(BackboneConfig):
    """Section ``model.backbone`` of an HRNet.

    Attributes:
        arch: One of ARCHITECTURES.
        width: Replaces the architecture's width; 0 keeps it.
        blocks: Replaces the architecture's number of blocks; 0 keeps it.
        form: ``segmentation`` (maps are enlarged bilinearly, running averages of norms move by .01) or
            ``pose`` (nearest neighbour, by .1, and the last module returns its highest branch only).
        align_corners: Whether bilinear resizing aligns corners; True for the weights of the OCR branch.
        frozen_norm: Norms use their stored moments in training too.
    """

    arch: str = "w48"
    width: int = 0
    blocks: int = 0
    form: Literal["segmentation", "pose"] = "segmentation"
    align_corners: bool = False
    frozen_norm: bool = False
    name: Literal["hrnet"] = field(default="hrnet", kw_only=True)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch: {self.arch!r}; {suggest(self.arch, ARCHITECTURES)}")
        for name in ("width", "blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {"align_corners": "form 'pose' enlarges by repetition"} if self.form == "pose" else {}

    @property
    def shape(self) -> Arch:
        """The architecture's numbers."""
        shape = ARCHITECTURES[self.arch]
        blocks = self.blocks or shape.blocks
        return shape._replace(width=self.width or shape.width, blocks=blocks)

    @property
    def momentum(self) -> float:
        """Momentum of running averages: the share of the old value that stays."""
        return 0.99 if self.form == "segmentation" else 0.9

    def branch_channels(self, stage: int) -> tuple[int, ...]:
        """Channels of the branches after ``stage`` (1 to 4), highest resolution first."""
        shape = self.shape
        if stage == 1:
            return (4 * shape.layer1[1],)
        count = 1 if stage == 4 and self.form == "pose" else stage
        return tuple(shape.width * 2**branch for branch in range(count))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every branch after every stage ("stage3/1"), highest resolution first."""
        return tuple(
            Stage(f"{name}/{branch}", channels, 4 * 2**branch)
            for number, name in enumerate(STAGES, 1)
            for branch, channels in enumerate(self.branch_channels(number))
        )

    def preprocess(self, images: Array) -> Array:
        """Normalises images as the released weights expect."""
        return normalize(images, "torch")

    def build(self, options: BuildOptions = DEFAULTS, *, adaptive_from: int = 5) -> HRNet:
        """The network up to the stage of the highest tap; ``adaptive_from`` as in `HRNet`."""
        if options.drop_blocks or options.own.any:
            raise ValueError("an HRNet has no blocks to drop, and no modules for each task")
        return HRNet(self, options.taps, adaptive_from, unbiased=options.unbiased)


class BranchBlock(nn.Module):
    """Residual block of two 3x3 convolutions, ReLU(x + F2(F1(x))); (B, H, W, features) to the same."""

    features: int
    unit: Callable[..., ConvNorm]

    def setup(self) -> None:
        self.conv1 = self.unit(self.features, self.features)
        self.conv2 = self.unit(self.features, self.features, relu=False)

    @remat_unit("blocks")
    def __call__(self, x: Array, masking: Masking | None, *, train: bool) -> Array:
        y = self.conv2(self.conv1(x, masking, train=train), masking, train=train)
        return jax.nn.relu(x + y)


class Module(nn.Module):
    """Residual blocks on every branch, then their fusion into the first ``outputs`` branches."""

    config: HRNetConfig
    channels: tuple[int, ...]
    outputs: int
    unit: Callable[..., ConvNorm]

    def setup(self) -> None:
        self.branches = [
            [
                BranchBlock(features, self.unit, name=f"branch{branch}_{block}")
                for block in range(self.config.shape.blocks)
            ]
            for branch, features in enumerate(self.channels)
        ]
        # From branch `source` to branch `to`: one 1x1 upwards; downwards one 3x3 of stride 2 per level.
        self.fuse = [
            [self._path(source, to) for source in range(len(self.channels))] for to in range(self.outputs)
        ]

    def _path(self, source: int, to: int) -> list[ConvNorm]:
        features, out, name = self.channels[source], self.channels[to], f"fuse_{to}_{source}"
        if source > to:
            return [self.unit(features, out, kernel_size=1, relu=False, name=name)]
        steps = range(to - source)
        widths = [out if step == steps[-1] else features for step in steps]
        return [
            self.unit(features, width, strides=2, relu=step != steps[-1], name=f"{name}_{step}")
            for step, width in zip(steps, widths, strict=True)
        ]

    @remat_unit("stages")
    def __call__(self, xs: Sequence[Array], masking: Masking | None, *, train: bool) -> tuple[Array, ...]:
        maps = []
        for blocks, x in zip(self.branches, xs, strict=True):
            if masking is not None and masking.mode == "sparse":
                x = masking.residual_blocks(x, [(block.conv1, block.conv2) for block in blocks])
            else:
                for block in blocks:
                    x = block(x, masking, train=train)
            maps.append(x)
        return tuple(self._fused(maps, to, masking, train=train) for to in range(self.outputs))

    @remat_unit("blocks")
    def _fused(self, maps: Sequence[Array], to: int, masking: Masking | None, *, train: bool) -> Array:
        size, total = (maps[to].shape[1], maps[to].shape[2]), None
        for source, x in enumerate(maps):
            for unit in self.fuse[to][source]:
                x = unit(x, masking, train=train)
            x = enlarge(x, size, self.config) if source > to else x
            total = x if total is None else total + x
        return jax.nn.relu(cast(Array, total))


def enlarge(x: Array, size: tuple[int, int], config: HRNetConfig) -> Array:
    """(B, h, w, C) enlarged to a higher branch's resolution."""
    if config.form == "pose":
        return resize_nearest(x, size)
    return resize_bilinear(x, size, align_corners=config.align_corners)


class HRNet(nn.Module):
    """Normalised images (B, H, W, 3) -> {"stage3/1": map of the second branch after stage 3, ...}.

    `first` and `stage` run it stage by stage.

    Attributes:
        taps: The maps that are returned; nothing after the highest one's stage is built. None: all.
        adaptive_from: First stage (2, 3 or 4) whose convolutions take masks; 5: none.
        unbiased: Norms store the unbiased variance of batches.
    """

    config: HRNetConfig
    taps: tuple[str, ...] | None = None
    adaptive_from: int = 5
    unbiased: bool = False

    def setup(self) -> None:
        config, shape = self.config, self.config.shape
        unit = partial(
            ConvNorm,
            frozen_norm=config.frozen_norm,
            momentum=config.momentum,
            unbiased=self.unbiased,
        )
        self.conv1 = unit(3, STEM, strides=2)
        self.conv2 = unit(STEM, STEM, strides=2)
        count, width = shape.layer1
        specs = [
            ResidualSpec(
                f"layer1_{block}",
                STAGES[0],
                4 * width if block else STEM,
                width,
                4 * width,
                stride_in_1x1=False,
                frozen_norm=config.frozen_norm,
                momentum=config.momentum,
            )
            for block in range(count)
        ]
        self.layer1 = [Bottleneck(spec, unbiased=self.unbiased, name=spec.name) for spec in specs]
        self.transitions = {
            number: self._transition(number, partial(unit, adaptive=number >= self.adaptive_from))
            for number in (2, 3, 4)
        }
        self.modules = {
            number: self._modules(number, partial(unit, adaptive=number >= self.adaptive_from))
            for number in (2, 3, 4)
        }

    def _transition(self, number: int, unit: Callable[..., ConvNorm]) -> list[ConvNorm | None]:
        """One layer per branch of stage ``number``; None for a branch that keeps its channels."""
        before = self.config.branch_channels(number - 1)
        units: list[ConvNorm | None] = []
        for branch in range(number):
            features, name = self.config.shape.width * 2**branch, f"transition{number - 1}_{branch}"
            if branch >= len(before):
                units.append(unit(before[-1], features, strides=2, name=name))
            else:
                same = before[branch] == features
                units.append(None if same else unit(before[branch], features, name=name))
        return units

    def _modules(self, number: int, unit: Callable[..., ConvNorm]) -> list[Module]:
        channels = tuple(self.config.shape.width * 2**branch for branch in range(number))
        count = self.config.shape.modules[number - 2]
        outputs = [number] * count
        outputs[-1] = len(self.config.branch_channels(number))
        return [
            Module(self.config, channels, kept, unit, name=f"stage{number}_{index}")
            for index, kept in enumerate(outputs)
        ]

    @remat_unit("stages")
    def first(self, images: Array, *, train: bool = False) -> tuple[Array]:
        """Stem and stage 1, which take no mask."""
        with jax.named_scope("stem"):
            x = self.conv2(self.conv1(images, train=train), train=train)
        with jax.named_scope(STAGES[0]):
            for block in self.layer1:
                x = block(x, train=train)
        return (x,)

    def stage(
        self, number: int, xs: Sequence[Array], masking: Masking | None = None, *, train: bool = False
    ) -> tuple[Array, ...]:
        """Stage ``number`` (2, 3, 4) from the maps of the stage before."""
        with jax.named_scope(STAGES[number - 1]):  # transitions too, for `flops`
            maps = []
            for branch, unit in enumerate(self.transitions[number]):
                x = xs[min(branch, len(xs) - 1)]
                maps.append(x if unit is None else unit(x, masking, train=train))
            for module in self.modules[number]:
                maps = list(module(maps, masking, train=train))
            return tuple(maps)

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        taps = [stage.name for stage in self.config.stages] if self.taps is None else self.taps
        maps: tuple[Array, ...] = self.first(images, train=train)
        features: dict[str, Array] = {}
        for number, name in enumerate(STAGES, 1):
            maps = self.stage(number, maps, train=train) if number > 1 else maps
            features |= {f"{name}/{branch}": x for branch, x in enumerate(maps)}
            if features.keys() >= set(taps):
                break
        return {tap: features[tap] for tap in taps}
