"""How a forward pass routes pixels: what every gated layer needs to know beyond its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynpix_jax.core.typing import Array

Mode = Literal["dense", "sparse"]
MODES: tuple[Mode, ...] = ("dense", "sparse")


@dataclass(frozen=True)
class Routing:
    """train: sample gates (stream ``gumbel``) instead of taking the arg-max.

    mode: ``dense`` multiplies by masks and is differentiable everywhere; ``sparse`` executes active positions
    only (no gradient reaches the gates).
    temperature: of the relaxation behind the straight-through gradient (eq. 4), a scalar in (0, inf).
    soft: the relaxed sample itself instead of the straight-through one, as the released code trains (dense
    only).
    """

    train: bool = False
    mode: Mode = "dense"
    temperature: float | Array = 1.0
    soft: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: {self.mode!r}; expected one of {MODES}")
        if self.mode == "sparse" and self.train and self.soft:
            raise ValueError("mode: 'sparse' needs hard gates; soft gates are neither on nor off")
