"""Choice of the implementation, and the checks that all of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.errors import suggest
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair, conv, conv_output_size
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.gather import gather
from dynpix_jax.ops.sparse.masked import masked
from dynpix_jax.ops.sparse.tiles import refuses as tiles_refuses
from dynpix_jax.ops.sparse.tiles import tiles
from dynpix_jax.ops.sparse.vjp import Run


class ImplementationUnavailable(ValueError):
    """A named implementation cannot run here; the message gives the reason and what can."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run the operation.

    Attributes:
      run: (x, kernel, mask, active or None, bias or None, strides, dilation) -> result.
      platforms: of ``jax.default_backend()``, where arrays lie unless they were put elsewhere; empty: all.
      refuses: (x, kernel, strides, dilation) -> the reason why it cannot run these, or "".
    """

    run: Run
    platforms: tuple[str, ...] = ()
    refuses: Callable[[Array, Array, Pair, Pair], str] | None = None

    def unavailable(self, x: Array, kernel: Array, strides: Pair, dilation: Pair) -> str:
        """Why it cannot run these arguments on this machine; "" if it can."""
        platform = jax.default_backend()
        if self.platforms and platform not in self.platforms:
            return f"it needs {' or '.join(self.platforms)}, the platform is {platform}"
        return self.refuses(x, kernel, strides, dilation) if self.refuses else ""


def implementations() -> dict[str, Implementation]:
    """Every implementation by name."""
    return {
        "masked": Implementation(masked),
        "gather": Implementation(gather),
        "tiles": Implementation(tiles, refuses=tiles_refuses),
        "pallas_tpu": _pallas("tpu"),
        "pallas_gpu": _pallas("gpu"),
    }


def _pallas(platform: str) -> Implementation:
    """The kernel for a platform; imported when used, for Pallas takes longer to import than all else."""

    def module() -> ModuleType:
        return import_module(f"dynpix_jax.ops.sparse.pallas_{platform}")

    def run(*arguments: Any) -> Array:
        y: Array = getattr(module(), f"pallas_{platform}")(*arguments)
        return y

    def refuses(*arguments: Any) -> str:
        return str(module().refuses(*arguments))

    return Implementation(run, (platform,), refuses)


# With fewer channels than the first number, gather is faster up to the second, a density
# (docs/sparse-execution.md).
_BREAK_EVEN = ((48, 0.6), (72, 0.4), (128, 0.6), (192, 0.75), (384, 0.88))


def break_even(channels: int) -> float:
    """Density up to which ``gather`` with ``channels`` input channels is faster than dense, on a CPU.

    Measured on the papers' layers of 18 to 512 channels.
    """
    return next((density for limit, density in _BREAK_EVEN if channels < limit), 0.97)


def default_implementation(x: Array) -> tuple[str, float]:
    """What ``implementation=None`` runs, and the density (0..1) above which it computes densely instead.

    The platform and the channels decide here, the density when the program runs. On a GPU or TPU it is
    "masked": their kernels have been compiled, but neither checked nor timed on a device yet.
    """
    return ("gather", break_even(x.shape[-1])) if jax.default_backend() == "cpu" else ("masked", 1.0)


def perforated_conv(
    x: Array,
    kernel: Array,
    mask: Mask,
    *,
    bias: Array | None = None,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    implementation: str | None = None,
    active: ActiveSet | None = None,
) -> Array:
    """Convolution at the positions where ``mask`` is True; zero elsewhere (also where a bias is given).

    Padded with ``dilation * (k // 2)`` zeros on every side. Differentiable in reverse mode with respect to
    ``x``, ``kernel`` and ``bias``; all implementations agree to rounding, in values and gradients.

    Args:
      x: (B, H, W, Cin), floating.
      kernel: (kh, kw, Cin, Cout) of x's dtype.
      mask: bool (B, Ho, Wo), True = compute.
      bias: (Cout,) or None.
      strides: of rows and columns.
      dilation: of the kernel's rows and columns.
      implementation: "masked" (dense, then zeros), "gather" (active positions only, XLA), "tiles" (active
        tiles, XLA), "pallas_tpu", "pallas_gpu". A named one runs or raises; there is no silent fallback.
        None: :func:`default_implementation` picks, and above its density the dense convolution runs; which
        of the two is known at run time only (under ``vmap`` both run: give a batch as B).
      active: ``active_set(mask)`` if it is there already (one mask, several ops).

    Returns:
      (B, Ho, Wo, Cout) of x's dtype.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown name.
      ImplementationUnavailable: the named implementation cannot run here.
    """
    strides, dilation = _pair("strides", strides), _pair("dilation", dilation)
    _check(x, kernel, mask, bias, strides, dilation, active)
    if 0 in (*x.shape, *kernel.shape, *mask.shape):
        return masked(x, kernel, mask, active, bias, strides, dilation)
    if implementation is None:
        return _by_density(x, kernel, mask, active, bias, strides, dilation)
    known, name = implementations(), implementation
    if name not in known:
        raise ValueError(f"perforated_conv: unknown implementation {name!r}; {suggest(str(name), known)}")
    chosen = known[name]
    reason = chosen.unavailable(x, kernel, strides, dilation)
    if reason:
        able = [n for n, other in known.items() if not other.unavailable(x, kernel, strides, dilation)]
        raise ImplementationUnavailable(
            f"perforated_conv: implementation {name!r} cannot run: {reason}; these can: {', '.join(able)}"
        )
    return chosen.run(x, kernel, mask, active, bias, strides, dilation)


def _by_density(
    x: Array,
    kernel: Array,
    mask: Mask,
    active: ActiveSet | None,
    bias: Array | None,
    strides: Pair,
    dilation: Pair,
) -> Array:
    """The default implementation up to its density, above it the dense convolution."""
    name, limit = default_implementation(x)
    if name == "masked":
        return masked(x, kernel, mask, active, bias, strides, dilation)
    count = jnp.sum(mask, dtype=jnp.int32) if active is None else active.count

    def sparse() -> Array:
        # Made inside the branch: a mask that turns out dense costs no list of its positions.
        where = active_set(mask) if active is None else active
        return implementations()[name].run(x, kernel, mask, where, bias, strides, dilation)

    def everywhere() -> Array:
        return conv(x, kernel, strides=strides, dilation=dilation, bias=bias).astype(x.dtype)

    def nearly_everywhere() -> Array:
        return jnp.where(mask[..., None], everywhere(), 0)

    full = (count == mask.size).astype(jnp.int32)
    case = jnp.where(count <= limit * mask.size, 0, 1 + full)
    return lax.switch(case, (sparse, nearly_everywhere, everywhere))


def _pair(name: str, value: Pair) -> Pair:
    if isinstance(value, int) or len(value) != 2 or min(value) < 1:
        raise ValueError(f"perforated_conv: {name} must be two positive integers, got {value}")
    return int(value[0]), int(value[1])


def _check(
    x: Array,
    kernel: Array,
    mask: Mask,
    bias: Array | None,
    strides: Pair,
    dilation: Pair,
    active: ActiveSet | None,
) -> None:
    def wrong(what: str, expected: str, got: object) -> ValueError:
        return ValueError(f"perforated_conv: {what} must be {expected}, got {got}")

    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise wrong("x", "floating (B, H, W, Cin)", f"{x.dtype} {x.shape}")
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[-1]:
        raise wrong("kernel", f"(kh, kw, {x.shape[-1]}, Cout) for x of shape {x.shape}", kernel.shape)
    if kernel.dtype != x.dtype:
        raise wrong("kernel", f"{x.dtype} as x is", kernel.dtype)
    window = (kernel.shape[0], kernel.shape[1])
    shape = (x.shape[0], *conv_output_size((x.shape[1], x.shape[2]), window, strides, dilation))
    if mask.dtype != jnp.bool_ or mask.shape != shape:
        raise wrong(
            "mask",
            f"bool {shape} (x {x.shape}, window {window}, strides {strides}, dilation {dilation})",
            f"{mask.dtype} {mask.shape}",
        )
    if bias is not None and bias.shape != (kernel.shape[-1],):
        raise wrong("bias", f"{(kernel.shape[-1],)}", bias.shape)
    if active is not None and active.shape != shape:
        raise wrong("active", f"the active set of a mask {shape}", active.shape)
