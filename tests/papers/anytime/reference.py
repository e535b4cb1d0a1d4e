"""The anytime network (EE, RH, CA) in NumPy, by the names of liuzhuang13/anytime's checkpoints."""

from __future__ import annotations

import numpy as np

from tests.backbones.hrnet_reference import Reference
from tests.numpy_layers import Map, average_pool, bilinear, interpolated, nearest, relu, softmax


class AnytimeReference(Reference):
    """HRNet with redesigned exits of D = 3, 2, 1 and confidence-adaptive stages from the second on.

    classes: of each exit. features: width of the redesigned heads; 0: plain ones. threshold: above this
    probability nothing is computed any more.
    """

    def __init__(self, *shape, classes: int, features: int, threshold: float):
        super().__init__(*shape, pose=False)
        self.classes, self.features, self.threshold = classes, features, threshold
        self.logits: Map | None = None

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Where the exit before is not certain enough, by its logits resized to ``size``."""
        assert self.logits is not None
        return softmax(nearest(self.logits, size)).max(0) <= self.threshold

    def conv(self, x: Map, name: str, out: int, size: int, stride: int = 1, *, bias: bool = False) -> Map:
        """Computed where the mask is True, interpolated elsewhere."""
        y = super().conv(x, name, out, size, stride, bias=bias)
        if self.logits is None:
            return y
        return interpolated(y, self.mask(y.shape[1:]), float(self.drawn(f"{name}.Lambda", 0.7, 3.0)))

    def classify(self, x: Map, name: str) -> Map:
        """1x1 to the classes. Drawn so that logits differ from place to place, or masks would be uniform."""
        if f"{name}.weight" not in self.tensors:
            logits = super().conv(x, name, self.classes, 1, bias=True)
            # Not more: means that cancel would leave rounding errors.
            gain = np.minimum(1.5 / logits.std((1, 2)), 12.0).astype(np.float32)
            self.tensors[f"{name}.weight"] *= gain[:, None, None, None]
            self.tensors[f"{name}.bias"] -= logits.mean((1, 2)).astype(np.float32)
            self.tensors[f"{name}.bias"] *= gain
        return self.conv(x, name, self.classes, 1, bias=True)

    def head(self, exit_: int, x: Map) -> Map:
        """Logits of an exit."""
        if exit_ == 4 or not self.features:
            name = "last_layer" if exit_ == 4 else f"exit{exit_}"
            x = relu(self.norm(self.conv(x, f"{name}.0", len(x), 1, bias=True), f"{name}.1"))
            return self.classify(x, f"{name}.3")
        depth, sizes = 4 - exit_, []
        for layer in range(2 * depth):
            if layer < depth:
                sizes.append(x.shape[1:])
                x = average_pool(x)
            else:
                x = bilinear(x, sizes.pop())
            name = f"exit{exit_}.{4 * layer + 1}"
            if layer == 2 * depth - 1:
                return self.classify(x, name)
            x = relu(
                self.norm(self.conv(x, name, self.features, 1, bias=True), f"exit{exit_}.{4 * layer + 2}")
            )
        raise AssertionError(f"exit {exit_}")

    def exits(self, image: Map) -> tuple[list[Map], list[np.ndarray]]:
        """Logits after each stage, and the masks of stages 2 to 4, at a quarter of the image's size."""
        maps, found, masks = [image], [], []
        self.logits = None
        for stage in (1, 2, 3, 4):
            maps = self.first(image) if stage == 1 else self.stage(stage, maps)
            size = maps[0].shape[1:]
            logits = self.head(stage, np.concatenate([maps[0], *(bilinear(x, size) for x in maps[1:])]))
            if self.logits is not None:
                masks.append(self.mask(size))
                logits = np.where(masks[-1], logits, self.logits)
            self.logits = logits
            found.append(logits)
        return found, masks
