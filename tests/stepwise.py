"""What toys that predict in steps share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dynpix_jax.flops import MacReport, SystemMacs


def costs(steps: tuple[float, ...], layers: Mapping[str, tuple[float, ...]] | None = None) -> SystemMacs:
    """MACs of such steps, and of gated layers in each of them."""
    return SystemMacs(MacReport(sum(steps), {}, {}), steps, layers or {})


def count(
    steps: tuple[float, ...], layers: Mapping[str, tuple[float, ...]] | None = None
) -> Callable[..., Any]:
    """A function in the place of `system_macs`."""
    return lambda system, size: costs(steps, layers)
