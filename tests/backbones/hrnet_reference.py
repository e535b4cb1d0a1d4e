"""HRNet in NumPy and SciPy, from tensors with the official checkpoints' names and layouts."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import map_coordinates

Map = np.ndarray
"""(C, H, W)."""


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

    def unit(self, x: Map, conv: str, norm: str, out: int, size: int = 3, stride: int = 1) -> Map:
        """Convolution, padded by size // 2, without bias; norm with stored moments."""
        kernel = self._rng.normal(0, (2 / (size * size * len(x))) ** 0.5, (out, len(x), size, size))
        kernel = self.tensors.setdefault(f"{conv}.weight", kernel.astype(np.float32))
        for leaf, low, high in (
            ("weight", 0.5, 1.2),
            ("bias", -0.3, 0.3),
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.5, 1.5),
        ):
            self.tensors.setdefault(f"{norm}.{leaf}", self._rng.uniform(low, high, out).astype(np.float32))
        pad = size // 2
        windows = sliding_window_view(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), (size, size), (1, 2))
        y = np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], kernel, optimize=True)
        scale, bias, mean, var = (
            self.tensors[f"{norm}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(var + 1e-5) * scale + bias

    def bottleneck(self, x: Map, name: str, width: int) -> Map:
        """Of stage 1; the first one projects the shortcut."""
        y = relu(self.unit(x, f"{name}.conv1", f"{name}.bn1", width, 1))
        y = relu(self.unit(y, f"{name}.conv2", f"{name}.bn2", width))
        y = self.unit(y, f"{name}.conv3", f"{name}.bn3", 4 * width, 1)
        if len(x) != 4 * width:
            x = self.unit(x, f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, 1)
        return relu(x + y)

    def enlarge(self, x: Map, factor: int) -> Map:
        if self.pose:
            return x.repeat(factor, 1).repeat(factor, 2)
        places = [(np.arange(side * factor) + 0.5) / factor - 0.5 for side in x.shape[1:]]
        grid = np.meshgrid(*places, indexing="ij")
        return np.stack([map_coordinates(one, grid, order=1, mode="nearest") for one in x])

    def fuse(self, name: str, maps: list[Map], to: int) -> Map:
        """What every branch says about one of them."""
        total = np.zeros_like(maps[to])
        for source, x in enumerate(maps):
            layer = f"{name}.fuse_layers.{to}.{source}"
            if source > to:
                x = self.enlarge(
                    self.unit(x, f"{layer}.0", f"{layer}.1", len(maps[to]), 1), 2 ** (source - to)
                )
            for k in range(to - source):
                last = k == to - source - 1
                out = len(maps[to]) if last else len(x)
                x = self.unit(x, f"{layer}.{k}.0", f"{layer}.{k}.1", out, 3, 2)
                x = x if last else relu(x)
            total = total + x
        return relu(total)

    def __call__(self, image: np.ndarray) -> list[Map]:
        """(3, H, W), sides multiples of 32 -> the branches after stage 4."""
        x = relu(self.unit(image, "conv1", "bn1", 64, 3, 2))
        x = relu(self.unit(x, "conv2", "bn2", 64, 3, 2))
        for block in range(self.layer1[0]):
            x = self.bottleneck(x, f"layer1.{block}", self.layer1[1])
        maps = [relu(self.unit(x, "transition1.0.0", "transition1.0.1", self.width))]
        for stage in (2, 3, 4):
            new = f"transition{stage - 1}.{stage - 1}.0"
            below = x if stage == 2 else maps[-1]
            width = self.width * 2 ** (stage - 1)
            maps = [*maps, relu(self.unit(below, f"{new}.0", f"{new}.1", width, 3, 2))]
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


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)
