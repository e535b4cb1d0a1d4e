"""Running a system on images: predictions, what was executed, MACs and milliseconds, one image at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.flops import MacReport, count_macs
from dynpix_jax.models.system import Outputs, System
from dynpix_jax.nn.routing import Mode
from dynpix_jax.typing import Variables


@dataclass(frozen=True)
class ImageResult:
    """One image through one mode.

    outputs: as numpy arrays, batch of one. shares: executed share of each gated layer. macs: executed MACs.
    milliseconds: of the compiled forward pass, input already on the device.
    """

    outputs: Outputs
    shares: dict[str, float]
    macs: float
    milliseconds: float


@dataclass
class Runner:
    """Forward passes of one set of variables, each image size compiled once a mode."""

    system: System
    variables: Variables
    _compiled: dict[tuple[Mode, tuple[int, ...]], Any] = field(default_factory=dict)
    _dense_macs: dict[tuple[int, int], float] = field(default_factory=dict)

    def __call__(self, image: np.ndarray, mode: Mode) -> ImageResult:
        """Run one (H, W, 3) uint8 RGB image."""
        batch = jnp.asarray(image)[None]
        forward = self._forward(mode, batch)
        start = time.perf_counter()
        outputs, shares = jax.block_until_ready(forward(self.variables, batch))
        milliseconds = 1e3 * (time.perf_counter() - start)
        shares = {name: float(share[0]) for name, share in shares.items()}
        size = image.shape[:2]
        macs = executed_macs(self.dense_macs(size), self.system.gated_macs(size), shares)
        return ImageResult(jax.tree.map(np.asarray, outputs), shares, macs, milliseconds)

    def dense_macs(self, size: tuple[int, int]) -> float:
        """MACs of the dense program on one (H, W) image, every gate and every branch counted as if open."""
        if size not in self._dense_macs:
            self._dense_macs[size] = dense_report(self.system, size).total
        return self._dense_macs[size]

    def macs_open(self, result: ImageResult, size: tuple[int, int]) -> float:
        """MACs of the (H, W) image had every gate been open; a pixel's choice of pooling size stays."""
        gated = self.system.gated_macs(size)
        closed = {name: macs for name, macs in gated.items() if self.system.is_gate(name)}
        return result.macs + sum(macs * (1.0 - result.shares[name]) for name, macs in closed.items())

    def _forward(self, mode: Mode, batch: jax.Array) -> Any:
        key = (mode, batch.shape)
        if key not in self._compiled:

            def forward(variables: Variables, images: jax.Array) -> tuple[Outputs, Mapping[str, jax.Array]]:
                outputs = self.system.apply(variables, images, mode=mode)
                return outputs, self.system.executed_shares(outputs)

            compiled = jax.jit(forward).lower(self.variables, batch).compile()
            jax.block_until_ready(compiled(self.variables, batch))  # first-touch costs are not the network's
            self._compiled[key] = compiled
        return self._compiled[key]


def variable_shapes(system: System) -> Variables:
    """Shapes and dtypes of a system's variables; nothing is executed."""
    # No parameter depends on the size of the images.
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes: Variables = jax.eval_shape(lambda key: system.init(key, {"image": images}), jax.random.key(0))
    return shapes


def dense_report(system: System, size: tuple[int, int]) -> MacReport:
    """MACs of the dense forward pass of one (H, W) image; nothing is executed."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return count_macs(lambda v, x: system.apply(v, x).predictions, variable_shapes(system), images)


def executed_macs(dense: float, gated: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """MACs of an image whose gated layers ran at ``shares`` of their positions."""
    return dense - sum(macs * (1.0 - shares[name]) for name, macs in gated.items())
