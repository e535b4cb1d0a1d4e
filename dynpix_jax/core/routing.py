"""Settings of a forward pass that every gated layer reads beside its input."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import flax.struct
import jax.numpy as jnp
from flax.core import FrozenDict

from dynpix_jax.core.errors import suggest
from dynpix_jax.core.typing import Array

Mode = Literal["dense", "sparse"]
MODES: tuple[Mode, ...] = ("dense", "sparse")


@flax.struct.dataclass
class Routing:
    """Settings of a forward pass. A pytree: temperature, noise and masks are arrays, the rest is static.

    Attributes:
        train: Sample gates (stream ``gumbel``) instead of taking the arg-max, move running averages.
        mode: ``dense`` multiplies by masks and is differentiable everywhere; ``sparse`` executes active
            positions only (no gradient reaches the gates).
        temperature: Temperature of the relaxation behind the straight-through gradient (PAG, eq. 4), above 0.
        noise: Scale of the Gumbel noise on the logits in training: 1 draws samples, 0 takes the arg-max of
            evaluation, with the same gradient.
        masks: Gate -> bool mask of the shape that ``Outputs.gates`` has, True = compute. It replaces the
            gate's decision; gates without an entry decide for themselves. The same masks give the same result
            in both modes.
        soft: Take the relaxed sample itself instead of the straight-through one (dense training only).
        implementation: Implementation of the sparse engine ("gather", ...); None: the engine decides.
    """

    train: bool = flax.struct.field(pytree_node=False, default=False)
    mode: Mode = flax.struct.field(pytree_node=False, default="dense")
    temperature: float | Array = 1.0
    noise: float | Array = 1.0
    masks: Mapping[str, Array] = FrozenDict()
    soft: bool = flax.struct.field(pytree_node=False, default=False)
    implementation: str | None = flax.struct.field(pytree_node=False, default=None)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: {self.mode!r}; expected one of {MODES}")
        if self.mode == "sparse" and self.train and self.soft:
            raise ValueError("mode: 'sparse' needs hard gates; soft gates are neither on nor off")

    def masks_of(self, gates: Collection[str]) -> Mapping[str, Array]:
        """The given masks of a network with these gates; a ValueError for a gate that there is not."""
        for name in self.masks:
            if name not in gates:
                raise ValueError(f"masks: there is no gate {name!r}; {suggest(name, gates)}")
        return self.masks


def check_mask(mask: Array, shape: tuple[int, ...], name: str) -> Array:
    """A mask that was given for a gate; a ValueError if it is no mask of that shape."""
    if mask.dtype != jnp.bool_ or mask.shape != shape:
        got = f"{mask.dtype} {mask.shape}"
        raise ValueError(f"{name}: a given mask must be bool {shape}, True = compute; got {got}")
    return mask
