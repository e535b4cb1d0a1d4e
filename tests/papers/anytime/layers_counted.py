"""The MACs of the anytime system layer by layer, as each convolution is called: another way to count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.masked_conv import Masking
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.papers.anytime.config import AnytimeConfig
from dynpix_jax.papers.anytime.network import AnytimeNetwork, spans

Size = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """The masked convolutions between two exits whose outputs have one resolution.

    gate: name of their mask. size: (h, w) of their outputs. macs: of all of them everywhere, one image.
    features: sum of their output channels. window: positions that interpolation looks at for one.
    """

    gate: str
    size: Size
    macs: float
    features: int
    window: int

    @property
    def name(self) -> str:
        """ "stage3_16x32"."""
        return f"{self.gate}_{self.size[0]}x{self.size[1]}"

    @property
    def interpolation(self) -> float:
        """MACs of interpolation for each of a convolution, where both are done."""
        return float(self.window * self.features * self.size[0] * self.size[1]) / self.macs


def step_macs(
    config: AnytimeConfig, channels: int, variables: Variables, size: Size
) -> tuple[tuple[float, ...], tuple[Group, ...]]:
    """(MACs of the steps up to each exit with nothing skipped, the groups of masked convolutions).

    One (H, W) image; nothing is executed, ``variables`` may be shapes.
    """
    network = AnytimeNetwork(config, channels)
    found: dict[tuple[str, Size], tuple[float, int]] = {}
    steps: list[float] = []
    maps: Any = (jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),)
    mask = None
    for span in spans(config.exits):
        convolutions: list[tuple[int, Size, float, int]] = []

        def note(run: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            y, layer = run(*args, **kwargs), context.module
            if isinstance(layer, Conv) and context.method_name == "__call__":
                macs = float(layer.kernel_size**2 * layer.in_features * y.size)
                convolutions.append((stage, y.shape[1:3], macs, y.shape[-1]))  # noqa: B023
            return y

        with nn.intercept_methods(note):
            for stage in span:
                maps, logits = jax.eval_shape(
                    partial(_run, network, stage, stage == span[-1]), variables, maps, mask
                )
        steps.append(sum(macs for _, _, macs, _ in convolutions))
        if mask is not None:
            for number, at, macs, features in convolutions:
                before = found.get((f"stage{number}", at), (0.0, 0))
                found[f"stage{number}", at] = before[0] + macs, before[1] + features
        mask = jax.ShapeDtypeStruct(logits.shape[:3], jnp.bool_) if config.adaptivity else None
    window = (2 * config.adaptivity.radius + 1) ** 2 if config.adaptivity else 0
    groups = [Group(gate, at, *sums, window) for (gate, at), sums in found.items()]
    return tuple(steps), tuple(groups)


def _run(
    network: AnytimeNetwork, stage: int, leave: bool, variables: Variables, maps: Any, mask: Array | None
) -> Any:
    """The maps of a stage, and (``leave``) the logits of the exit after it."""
    masking = None if mask is None else Masking(mask)
    maps = network.apply(variables, stage, maps, masking, method="stage")
    return maps, network.apply(variables, stage, maps, masking, method="exit") if leave else None


def shares(groups: Sequence[Group], gates: Mapping[str, Array]) -> dict[str, Array]:
    """Share (B,) of each group's MACs that masks leave, by the groups' names.

    p + p (1 - p) times 49 MACs a feature (with a radius of 3), where p is the density of the mask at the
    group's resolution: the released code's count of convolutions and the interpolation of what they skip,
    each skipped position reading its computed neighbours only.
    """
    result = {}
    for group in groups:
        p = resize_nearest(gates[group.gate], group.size).mean((1, 2))
        result[group.name] = p + p * (1 - p) * group.interpolation
    return result
