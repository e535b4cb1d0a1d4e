"""Choice of the implementation, and the checks that all of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynpix_jax.ops.active import ActiveSet
from dynpix_jax.ops.conv import Pair, conv_output_size
from dynpix_jax.ops.perforated_conv.gather import gather
from dynpix_jax.ops.perforated_conv.masked import masked
from dynpix_jax.typing import Array, Mask
from dynpix_jax.utils.errors import suggest

Run = Callable[[Array, Array, Mask, ActiveSet | None, Array | None, Pair, Pair], Array]

# From this many input channels up the gather pays on a CPU. At 128 channels (40x60, 2 cores) it took about as
# long as the dense convolution at density 0.5 and longer above.
_GATHER_CHANNELS = 256


class ImplementationUnavailable(ValueError):
    """A named implementation cannot run here; the message gives the reason and what can."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run the operation.

    Attributes:
      run: (x, kernel, mask, active or None, bias or None, strides, dilation) -> result; None: not in this
        version.
      platforms: of ``jax.default_backend()``; empty: every one.
      refuses: (x, kernel, strides, dilation) -> the reason why it cannot run these, or "".
    """

    run: Run | None
    platforms: tuple[str, ...] = ()
    refuses: Callable[[Array, Array, Pair, Pair], str] | None = None

    def unavailable(self, x: Array, kernel: Array, strides: Pair, dilation: Pair) -> str:
        """Why it cannot run these arguments on this machine; "" if it can."""
        if self.run is None:
            return "this version does not have the kernel"
        platform = jax.default_backend()
        if self.platforms and platform not in self.platforms:
            return f"it needs {' or '.join(self.platforms)}, the platform is {platform}"
        return self.refuses(x, kernel, strides, dilation) if self.refuses else ""


def implementations() -> dict[str, Implementation]:
    """Every implementation by name."""
    return {
        "masked": Implementation(masked),
        "gather": Implementation(gather),
        "pallas_tpu": Implementation(None, platforms=("tpu",)),
        "pallas_gpu": Implementation(None, platforms=("gpu",)),
    }


def default_implementation(x: Array, kernel: Array) -> str:
    """The name that None stands for: "gather" on a CPU from 256 input channels up, else "masked".

    Decided by the platform (``jax.default_backend()``) and shapes alone, never by the mask's contents: at
    densities near 1 "masked" is faster on a CPU too, and a caller who knows the density can name it.
    Elsewhere than on a CPU the loop of small products has not been measured to pay.
    """
    return "gather" if jax.default_backend() == "cpu" and x.shape[-1] >= _GATHER_CHANNELS else "masked"


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
      implementation: "masked" (dense, then zeros), "gather" (active positions only, XLA), "pallas_tpu",
        "pallas_gpu", or None: :func:`default_implementation` picks. A named one runs or raises; there is no
        silent fallback.
      active: ``active_set(mask)`` if it is there already (one mask, several ops).

    Returns:
      (B, Ho, Wo, Cout) of x's dtype.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown name.
      ImplementationUnavailable: the named implementation cannot run here.
    """
    strides, dilation = _pair("strides", strides), _pair("dilation", dilation)
    _check(x, kernel, mask, bias, strides, dilation, active)
    known = implementations()
    name = default_implementation(x, kernel) if implementation is None else implementation
    if name not in known:
        raise ValueError(f"perforated_conv: unknown implementation {name!r}; {suggest(str(name), known)}")
    chosen = known[name]
    reason = chosen.unavailable(x, kernel, strides, dilation)
    if reason or chosen.run is None:
        able = [n for n, other in known.items() if not other.unavailable(x, kernel, strides, dilation)]
        raise ImplementationUnavailable(
            f"perforated_conv: implementation {name!r} cannot run: {reason}; these can: {', '.join(able)}"
        )
    return chosen.run(x, kernel, mask, active, bias, strides, dilation)


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
