"""Holds the density of a network's arg-max masks at rho, by shifting the biases of its gates.

Training samples its masks, and eq. 6 holds the density of samples at rho. Evaluation takes the arg-max: where
a gate computes with probability .6 everywhere, .6 of its samples are on and all of its arg-max masks. So the
arg-max density, which is paid for, drifts off rho, usually upwards. A calibration at the end of a stage
measures by how much computing outweighs skipping at each position of some training images, and moves each
threshold to the quantile of rho. What changes is one number a gate, part of the parameters; sparse and dense
mode read the same.

A network that has learned with the masks of samples loses accuracy by the shift. So our recipes calibrate
before the last stage and train that on arg-max masks (``gate.noise`` 0), whose density eq. 6 then holds; what
the second calibration is left to shift is small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.nn.gates import MARGIN, with_shifted_biases
from dynpix_jax.papers.pag.config import gated_blocks

if TYPE_CHECKING:
    from dynpix_jax.papers.pag.system import Pag

STEPS = (4, 2, 1, 1, 1)
"""Every how many images each pass measures. A shift changes what later gates see, so one pass is not enough;
the first need not be exact, and the last are left out once all images have the density."""
TOLERANCE = 0.002


def calibrate(
    system: Pag, variables: Variables, image: Callable[[int], Array], count: int
) -> tuple[Variables, str]:
    """Variables whose gates have density rho on ``count`` images, and a line for the log.

    ``gate.calibrate`` says whether every gate is shifted by itself, or all by the same so that the mean of
    their densities is rho, each weighing the same.
    """
    gate, names = system.config.gate, gated_blocks(system.config)
    groups = [[name] for name in names] if gate.calibrate == "each" else [list(names)]
    measure, found = jax.jit(partial(_measure, system)), []
    for step in STEPS:
        margins = _joined([measure(variables, image(place)) for place in range(0, count, step)])
        densities = [np.mean([np.mean(margins[name] > 0) for name in group]) for group in groups]
        found.append(np.mean(densities))
        if step == 1 and np.abs(np.subtract(densities, gate.rho)).max() <= TOLERANCE:
            break
        shifts: dict[str, float] = {}
        for group in groups:
            shift = -threshold([margins[name] for name in group], gate.rho)
            shifts |= {system.gate_biases[name]: shift for name in group}
        variables = {**variables, "params": with_shifted_biases(variables["params"], shifts)}
    return variables, (
        f"gates calibrated on {count} training images: density {found[0]:.3f} is now {found[-1]:.4f}, "
        f"rho is {gate.rho:g}"
    )


def threshold(margins: Sequence[np.ndarray], rho: float) -> float:
    """The number above which a share of the margins lies that is as close to rho as can be, never none.

    Args:
        margins: Groups that weigh the same, whatever their sizes.
        rho: Share in (0, 1].
    """
    values = np.concatenate([np.ravel(group) for group in margins])
    weights = np.concatenate([np.full(np.size(group), 1 / np.size(group)) for group in margins])
    levels, where = np.unique(values, return_inverse=True)
    # Shares of what is at least the largest level, the second largest, ...
    above = np.cumsum(np.bincount(where, weights)[::-1]) / len(margins)
    count = int(np.argmin(np.abs(above - rho))) + 1
    levels = levels[::-1]
    if count == len(levels):
        return float(levels[-1]) - 1.0
    return float(levels[count - 1] + levels[count]) / 2


def _measure(system: Pag, variables: Variables, images: Array) -> dict[str, Array]:
    """Block -> margins (N,) of its gate at all positions of the images."""
    with system.policy.in_force():
        _, sown = system.network.apply(variables, images, Routing(), mutable=["intermediates"])
    gates = sown.get("intermediates", {}).get("backbone", {})
    try:
        return {name: gates[name]["gate"][MARGIN][0].ravel() for name in gated_blocks(system.config)}
    except KeyError:
        kind = system.config.gate.kind
        raise UserError(f"gate.kind: {kind!r} has a bias to calibrate, but sows no {MARGIN!r}") from None


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, np.ndarray]:
    """The margins of several images, on the host."""
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
