"""HRNet in NumPy and SciPy, from tensors with the official checkpoints' names and layouts."""

from __future__ import annotations

import numpy as np

from tests.numpy_layers import Map, batch_norm, bilinear, conv, nearest, relu


class Reference:
    """A network with random weights, which are drawn when they are first asked for.

    width: channels of the highest branch. layer1: bottlenecks and their width. modules: of stages 2 to 4.
    blocks: of a branch in a module. pose: enlarges by repetition, and ends with the highest branch.
    """

    def __init__(
        self, width: int, layer1: tuple[int, int], modules: tuple[int, ...], blocks: int, *, pose: bool
    ):
        self.width, self.layer1, self.modules, self.blocks, self.pose = width, layer1, modules, blocks, pose
        self.tensors: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(0)

    def drawn(self, name: str, low: float, high: float, *shape: int) -> np.ndarray:
        """The tensor of that name, drawn uniformly the first time."""
        if name not in self.tensors:
            self.tensors[name] = self._rng.uniform(low, high, shape).astype(np.float32)
        return self.tensors[name].astype(np.float64)

    def conv(self, x: Map, name: str, out: int, size: int, stride: int = 1, *, bias: bool = False) -> Map:
        """Convolution, padded by size // 2."""
        spread = (6 / (size * size * len(x))) ** 0.5
        kernel = self.drawn(f"{name}.weight", -spread, spread, out, len(x), size, size)
        offset = self.drawn(f"{name}.bias", -0.3, 0.3, out) if bias else None
        return conv(x, kernel, offset, stride=stride)

    def norm(self, x: Map, name: str) -> Map:
        """By stored moments."""
        ranges = dict(weight=(0.5, 1.2), bias=(-0.3, 0.3), running_mean=(-0.3, 0.3), running_var=(0.5, 1.5))
        return batch_norm(x, *(self.drawn(f"{name}.{leaf}", *ends, len(x)) for leaf, ends in ranges.items()))

    def unit(self, x: Map, conv: str, norm: str, out: int, size: int = 3, stride: int = 1) -> Map:
        """Convolution without bias, norm."""
        return self.norm(self.conv(x, conv, out, size, stride), norm)

    def bottleneck(self, x: Map, name: str, width: int) -> Map:
        """Of stage 1; the first one projects the shortcut."""
        y = relu(self.unit(x, f"{name}.conv1", f"{name}.bn1", width, 1))
        y = relu(self.unit(y, f"{name}.conv2", f"{name}.bn2", width))
        y = self.unit(y, f"{name}.conv3", f"{name}.bn3", 4 * width, 1)
        if len(x) != 4 * width:
            x = self.unit(x, f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, 1)
        return relu(x + y)

    def fuse(self, name: str, maps: list[Map], to: int) -> Map:
        """What every branch says about one of them."""
        total = np.zeros_like(maps[to])
        for source, x in enumerate(maps):
            layer = f"{name}.fuse_layers.{to}.{source}"
            if source > to:
                x = self.unit(x, f"{layer}.0", f"{layer}.1", len(maps[to]), 1)
                x = (nearest if self.pose else bilinear)(x, maps[to].shape[1:])
            for k in range(to - source):
                last = k == to - source - 1
                out = len(maps[to]) if last else len(x)
                x = self.unit(x, f"{layer}.{k}.0", f"{layer}.{k}.1", out, 3, 2)
                x = x if last else relu(x)
            total = total + x
        return relu(total)

    def first(self, image: Map) -> list[Map]:
        """Stem and stage 1."""
        x = relu(self.unit(image, "conv1", "bn1", 64, 3, 2))
        x = relu(self.unit(x, "conv2", "bn2", 64, 3, 2))
        for block in range(self.layer1[0]):
            x = self.bottleneck(x, f"layer1.{block}", self.layer1[1])
        return [x]

    def stage(self, stage: int, maps: list[Map]) -> list[Map]:
        """Stage 2, 3 or 4."""
        x = maps[-1]
        if stage == 2:
            maps = [relu(self.unit(x, "transition1.0.0", "transition1.0.1", self.width))]
        new, width = f"transition{stage - 1}.{stage - 1}.0", self.width * 2 ** (stage - 1)
        maps = [*maps, relu(self.unit(x, f"{new}.0", f"{new}.1", width, 3, 2))]
        for module in range(self.modules[stage - 2]):
            name = f"stage{stage}.{module}"
            for branch in range(stage):
                for block in range(self.blocks):
                    inner, x = f"{name}.branches.{branch}.{block}", maps[branch]
                    y = relu(self.unit(x, f"{inner}.conv1", f"{inner}.bn1", len(x)))
                    maps[branch] = relu(x + self.unit(y, f"{inner}.conv2", f"{inner}.bn2", len(x)))
            end = self.pose and stage == 4 and module == self.modules[2] - 1
            maps = [self.fuse(name, maps, to) for to in range(1 if end else stage)]
        return maps

    def __call__(self, image: Map) -> list[Map]:
        """(3, H, W) -> the branches after stage 4."""
        maps = self.first(image)
        for stage in (2, 3, 4):
            maps = self.stage(stage, maps)
        return maps
