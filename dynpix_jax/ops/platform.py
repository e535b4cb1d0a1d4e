"""Functions with one program for CPUs and one for other platforms, chosen when they are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
from jax import lax

from dynpix_jax.core.typing import Array

Bilinear = Callable[..., Array]
"""(x, kernel, *geometry) -> y, linear in x and in the kernel; the geometry is static."""


_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced inside of this context is for that platform: `default_platform` names it."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def default_platform() -> str:
    """The platform of programs that name no device, such as "cpu".

    `compiled_for` decides, then `jax.default_device` if set.
    """
    if target := _TARGET.get():
        return target
    device = getattr(jax.config, "jax_default_device", None)
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else str(device.platform)


def device_here() -> jax.Device | None:
    """The device of programs that name none; None inside `compiled_for`, whose device need not be here."""
    if _TARGET.get():
        return None
    device = getattr(jax.config, "jax_default_device", None)
    if device is None or isinstance(device, str):
        return jax.local_devices(backend=device)[0]
    return device


def by_platform(*, cpu: Bilinear, default: Bilinear) -> Bilinear:
    """A function with two programs that compute the same values, one of them for CPUs.

    The platform is the one that the program is compiled for, not that of the machine. Derivatives choose
    again: JAX's own derivative of the choice would keep the residuals of both programs.

    Returns:
        (x, kernel, *geometry) -> y; differentiable in reverse mode, any number of times.
    """

    def choose(geometry: tuple[Any, ...]) -> Callable[[Array, Array], Array]:
        @jax.custom_vjp
        def run(x: Array, kernel: Array) -> Array:
            y: Array = lax.platform_dependent(x, kernel, cpu=bound[0], default=bound[1])
            return y

        def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
            return run(x, kernel), (x, kernel)

        def backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
            pulled = [partial(pull_back, program) for program in bound]
            gradients: tuple[Array, Array] = lax.platform_dependent(
                *saved, gradient, cpu=pulled[0], default=pulled[1]
            )
            return gradients

        bound = [lambda x, kernel, f=f: f(x, kernel, *geometry) for f in (cpu, default)]
        run.defvjp(forward, backward)
        return run

    def chosen(x: Array, kernel: Array, *geometry: Any) -> Array:
        return choose(geometry)(x, kernel)

    return chosen


def pull_back(run: Callable[..., Array], x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """The gradients of ``run(x, kernel)`` for the gradient of its result."""
    gradients: tuple[Array, Array] = jax.vjp(run, x, kernel)[1](gradient)
    return gradients
