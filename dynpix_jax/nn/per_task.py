"""Modules per task: squeeze-and-excitation, norms, residual adapters (ASTMT, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from dynpix_jax.core.typing import Array
from dynpix_jax.nn.norm import BatchNorm

Activation = Callable[[Array], Array]


@dataclass(frozen=True)
class Modulation:
    """Which modules of an encoder or decoder are each task's own.

    Attributes:
        tasks: Names of the tasks that share the rest.
        se: Squeeze-and-excitation per task.
        norm: Batch norm per task.
        adapters: 1x1 convolution per task, parallel to a shared convolution.
    """

    tasks: tuple[str, ...] = ()
    se: bool = False
    norm: bool = False
    adapters: bool = False

    @property
    def any(self) -> bool:
        """Whether any module is a task's own."""
        return bool(self.tasks) and (self.se or self.norm or self.adapters)


SHARED = Modulation()
"""Nothing is a task's own."""


class PerTask(nn.Module):
    """One module per task, as attributes with the tasks' names; ``of_task`` selects one."""

    tasks: tuple[str, ...]
    make: Callable[[], nn.Module]

    def setup(self) -> None:
        for task in self.tasks:
            setattr(self, task, self.make())


def per_task(tasks: tuple[str, ...], make: Callable[[], nn.Module], *, own: bool) -> nn.Module:
    """A module from ``make``, or one per task if ``own`` and there are tasks; call it through ``of_task``.

    A shared module has the same parameter names as in a network for one task; a task's own has the task's
    name in them ("res2_1/bn1/depth/scale").
    """
    return PerTask(tasks, make) if own and tasks else make()


def of_task(module: nn.Module, task: str) -> Any:
    """The module of that task, or the shared one."""
    return getattr(module, task) if isinstance(module, PerTask) else module


def task_norm(
    modulation: Modulation,
    features: int,
    *,
    frozen: bool = False,
    momentum: float = 0.9,
    unbiased: bool = False,
) -> nn.Module:
    """Batch norm, one per task if ``modulation.norm``."""
    norm = partial(BatchNorm, features, frozen=frozen, momentum=momentum, unbiased=unbiased)
    return per_task(modulation.tasks, norm, own=modulation.norm)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018): scales the channels of (B, H, W, features).

    Global mean -> ``features // reduction`` -> activation -> ``features`` -> sigmoid. Kernels start by He et
    al., over the inputs, as in ASTMT's ResNets.
    """

    features: int
    reduction: int = 16
    activation: Activation = jax.nn.relu
    kernel_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

    def setup(self) -> None:
        hidden = max(self.features // self.reduction, 1)
        self.reduce = nn.Dense(hidden, kernel_init=self.kernel_init)
        self.expand = nn.Dense(self.features, kernel_init=self.kernel_init)

    def __call__(self, x: Array) -> Array:
        scale = jax.nn.sigmoid(self.expand(self.activation(self.reduce(x.mean((1, 2))))))
        return x * scale[:, None, None, :].astype(x.dtype)
