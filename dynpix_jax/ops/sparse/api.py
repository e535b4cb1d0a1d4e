"""Dispatch: checks a call, chooses its implementation, runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TypeVar

import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.ops.conv import Pair
from dynpix_jax.ops.platform import default_platform
from dynpix_jax.ops.sparse.active import ActiveSet
from dynpix_jax.ops.sparse.call import Active, Call, bind
from dynpix_jax.ops.sparse.costs import break_even, row_costs
from dynpix_jax.ops.sparse.gather import gather, gather_or_everywhere
from dynpix_jax.ops.sparse.interpret import interpreting
from dynpix_jax.ops.sparse.layers import Convolution, Depthwise, Layer, Shortcut, WindowLayer, everywhere
from dynpix_jax.ops.sparse.masked import masked
from dynpix_jax.ops.sparse.rows import ActiveRows
from dynpix_jax.ops.sparse.vjp import Run, pull_back, with_pull_back

Result = TypeVar("Result")


class ImplementationUnavailable(UserError, ValueError):
    """A named implementation cannot run here; the message gives the reason and the alternatives."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run a call.

    Attributes:
        run: The program.
        platforms: Platforms on which it runs; empty: all.
        refuses: Gives the reason why it cannot run a call of a single convolution, or "".
    """

    run: Run
    platforms: tuple[str, ...] = ()
    refuses: Callable[[Call], str] | None = None

    def unavailable(self, call: Call) -> str:
        """Why it cannot run a call on this machine; "" if it can."""
        platform = default_platform()
        if self.platforms and platform not in self.platforms and not interpreting():
            return f"it needs {' or '.join(self.platforms)}, the platform is {platform}"
        if self.refuses is None:
            return ""
        reasons = (self.refuses(call.single(call.x, layer)) for layer in call.convolutions())
        return next(filter(None, reasons), "")


def implementations() -> dict[str, Implementation]:
    """All implementations by name."""
    return {
        "masked": Implementation(masked),
        "gather": Implementation(gather),
        "pallas_tpu": _pallas("tpu"),
        "pallas_gpu": _pallas("gpu"),
    }


def _pallas(platform: str) -> Implementation:
    """The kernel for a platform; imported when used, because importing Pallas is slow.

    It runs a chain as a whole, up to the shortcut, if it knows all layers and they fit. Else it runs the
    convolutions that read windows; the other layers run everywhere, and the result is masked.
    """

    def module() -> ModuleType:
        return import_module(f"dynpix_jax.ops.sparse.pallas_{platform}")

    def run(call: Call) -> Array:
        kernel: Run = getattr(module(), f"pallas_{platform}")
        if module().fuses(call):
            return kernel(call)

        def convolve(layer: WindowLayer, x: Array) -> Array:
            by_kernel = layer is call.layers[0] or layer.window != (1, 1)
            return kernel(call.single(x, layer)) if by_kernel else layer.everywhere(x)

        return masked(call, convolve)

    def refuses(call: Call) -> str:
        if isinstance(call.first, Depthwise):
            return "its kernel is that of a dense convolution, this one is depthwise"
        return str(module().refuses(call))

    return Implementation(run, (platform,), refuses)


def sparse_block(
    x: Array,
    active: Active,
    layers: Sequence[Layer],
    *,
    combine: Shortcut | None = None,
    init: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """A chain of layers at active positions; the other positions keep what ``init`` holds.

    All implementations agree to rounding, in values and gradients, for inputs of any sign. Differentiable in
    reverse mode with respect to ``x``, ``init`` and the arrays of the layers.

    Args:
        x: (B, H, W, Cin), floating.
        active: The positions to compute: a mask bool (B, Ho, Wo), its ``active_set`` (one mask, several
            calls), or the ``active_rows`` of a mask (several blocks that share it).
        layers: A :class:`Convolution` or :class:`Depthwise`, then 1x1 convolutions, :class:`Affine`,
            :class:`Relu` and other functions of single positions that are pytrees, in any order. On rows:
            :class:`ResidualBlock`, whose 3x3 convolutions keep the channels of ``x`` and are each followed by
            their :class:`Interpolation`.
        combine: None: the result replaces ``init`` at active positions. :class:`Shortcut`: a residual block,
            ReLU(I + y) at active positions and ReLU(I) at the others.
        init: (B, Ho, Wo, Cout), None: zeros.
        implementation: "masked" (dense, then masked), "gather" (active positions only, XLA), "pallas_tpu",
            "pallas_gpu" (a kernel for the whole chain, or for its convolutions that read windows). A named
            one runs or raises; there is no silent fallback. None: on a CPU ``gather`` or ``masked``,
            whichever is faster at the density and channels, chosen at run time (under ``vmap`` both run:
            give a batch as B); elsewhere ``masked``.

    Returns:
        (B, Ho, Wo, Cout) of the dtype of ``init``, else of x. On rows: x with the layers applied at needed
        rows; other values are arbitrary but finite.

    Raises:
        ValueError: Shapes or dtypes do not fit, the chain is not supported, or the name is unknown.
        ImplementationUnavailable: The named implementation cannot run here.
    """
    call = bind(x, active, tuple(layers), combine, init)
    if implementation is None:
        return masked(call) if call.empty else _decide(call)
    known = implementations()
    _check_name("sparse_block", implementation)
    if call.empty:
        return masked(call)
    if reason := known[implementation].unavailable(call):
        able = [name for name, other in known.items() if not other.unavailable(call)]
        raise ImplementationUnavailable(
            f"implementation {implementation!r} cannot run: {reason}; these can: {', '.join(able)}"
        )
    return known[implementation].run(call)


def run_if_any(
    keep: Array,
    update: Callable[[], Array],
    idle: Callable[[], Array],
    *,
    name: str,
    implementation: str | None = None,
) -> Array:
    """``update()``, which does not run where no image of the batch keeps it: then ``idle()``.

    For layers that whole images skip. The update itself has to leave out the images that are not kept.

    Args:
        keep: (B,), above a half for images that keep the layer.
        update: The layer; its values for images that are not kept are those of ``idle``.
        idle: The result without the layer, of the same shape and dtype.
        name: Of the layer, for messages.
        implementation: As of `sparse_block`: "masked" always runs the update; None and "gather" decide while
            the program runs.

    Raises:
        ValueError: The implementation's name is unknown.
        ImplementationUnavailable: It is a kernel's, which has nothing to skip within an image.
    """
    if implementation is not None:
        _check_name("run_if_any", implementation)
    if implementation == "masked":
        return update()
    if implementation not in (None, "gather"):
        raise ImplementationUnavailable(
            f"implementation {implementation!r} cannot run: the gate of {name} "
            "skips it for whole images, where no kernel saves anything; these can: masked, gather"
        )
    result: Array = lax.cond(jnp.any(keep > 0.5), update, idle)
    return result


def _check_name(function: str, implementation: str) -> None:
    if implementation not in (known := implementations()):
        raise ValueError(
            f"{function}: unknown implementation {implementation!r}; {suggest(str(implementation), known)}"
        )


def perforated_conv(
    x: Array,
    kernel: Array,
    active: Mask | ActiveSet,
    *,
    bias: Array | None = None,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    implementation: str | None = None,
) -> Array:
    """A convolution at active positions; zero elsewhere (also where a bias is given).

    It is `sparse_block` of one layer, with the same errors.

    Args:
        x: (B, H, W, Cin), floating; padded with ``dilation * (k // 2)`` zeros on every side.
        kernel: (kh, kw, Cin, Cout) of x's dtype.
        active: bool (B, Ho, Wo), True = compute, or its ``active_set``.
        bias: (Cout,) or None.
        strides: Strides of rows and columns.
        dilation: Dilation of the kernel's rows and columns.
        implementation: See `sparse_block`.

    Returns:
        (B, Ho, Wo, Cout) of x's dtype.
    """
    if kernel.dtype != x.dtype and jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"perforated_conv: kernel must be {x.dtype} as x is, got {kernel.dtype}")
    layer = Convolution(kernel, bias, strides, dilation)
    return sparse_block(x, active, (layer,), implementation=implementation)


def _pulled_back(call: Call, gradient: Array) -> list[Array]:
    programs = [partial(pull_back, run) for run in (gather, gather_or_everywhere, masked, _unmasked)]
    gradients: list[Array] = _choose(call, programs[0], programs[1], programs[2], programs[3], gradient)
    return gradients


# Its derivative chooses again: JAX's own derivative of the choice would keep the residuals of all programs.
@with_pull_back(_pulled_back)
def _decide(call: Call) -> Array:
    """Runs the default implementation of the platform that the program is compiled for."""
    return _choose(call, gather, gather_or_everywhere, masked, _unmasked)


def _choose(
    call: Call,
    sparse: Callable[..., Result],
    wide: Callable[..., Result],
    dense: Callable[..., Result],
    unmasked: Callable[..., Result],
    *others: Array,
) -> Result:
    """Runs one of the programs.

    ``wide`` is for chains whose convolution is cheap everywhere (Winograd, depthwise), ``unmasked`` for a
    single convolution with all positions active.
    """

    def on_cpu(call: Call, *others: Array) -> Result:
        size, channels = call.mask.size, call.x.shape[-1]
        if isinstance(call.active, ActiveRows):
            blocks = [layer for layer in call.convolutions() if isinstance(layer, Convolution)]
            winograd = bool(blocks) and blocks[0].by_winograd(call.x)
            active, interpolated = row_costs(channels, winograd=winograd)
            rows = call.active
            cost = active * rows.count + interpolated * (rows.end - rows.interpolated)
            chosen: Result = lax.cond(cost <= size, sparse, dense, call, *others)
            return chosen
        first = call.first
        winograd = isinstance(first, Convolution) and first.by_winograd(call.x)
        if len(call.layers) > 1:  # fused: sparse was faster than XLA's convolution at every density measured
            whole = winograd or isinstance(first, Depthwise)
            return wide(call, *others) if whole else sparse(call, *others)
        full = (call.count == size).astype(jnp.int32)
        few = call.count <= break_even(channels, winograd=winograd) * size
        case = jnp.where(few, 0, 1 + full)
        chosen = lax.switch(case, (sparse, dense, unmasked), call, *others)
        return chosen

    result: Result = lax.platform_dependent(call, *others, cpu=on_cpu, default=dense)
    return result


def _unmasked(call: Call) -> Array:
    """Runs the chain where every position is active."""
    y = everywhere(call.layers, call.x)
    if call.init is None:
        return y
    y = y.astype(call.init.dtype)
    return y if call.combine is None else call.combine.join(call.init, y)
