"""Active positions only, as a Pallas kernel for NVIDIA Hopper GPUs (Mosaic GPU, wgmma).

The convolution is an implicit matrix product with one row for each active position: the window of a position
is gathered while the product runs and never written out. A block takes 128 active positions from anywhere,
so masks of independent pixels save as much as blobs; strides and dilation are arithmetic on indices. The
output starts as zeros, and results are written to their positions.

float32 runs as three products of bfloat16 halves, summed in float32: its error is below 1e-5 of the largest
result, where TF32 has some 1e-3. Infinities become nan.

``pallas_gpu_kernel.py`` is the kernel, ``pallas_gpu_plan.py`` lists its reads of each step. The tests compile
it ahead of time for an H100; ``dynpix bench device`` checks and measures it on a device.
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.conv import Pair
from dynpix_jax.ops.platform import default_platform
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.gather import gather
from dynpix_jax.ops.sparse.interpret import interpreting
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, MAX_TAPS, PIECE, Plan, make_plan
from dynpix_jax.ops.sparse.vjp import derivative_of

_DTYPES = ("bfloat16", "float16", "float32")

# Only compute capability 9.0 has the instruction wgmma; later GPUs multiply matrices in other ways.
_CAPABILITY = "9.0"

# Multiprocessors of an H100 or H200 (SXM): the kernel is planned for them if there is no device.
_CORES = 132


def refuses(call: Call) -> str:
    """Why the kernel cannot run a convolution of these shapes and dtype on this machine; "" if it can.

    Any number of channels and features is supported: input channels are padded to a multiple of 8, features
    of the weights to a multiple of 64.
    """
    if (reason := _refuses_arguments(call)) or interpreting():
        return reason
    try:
        # Part of JAX, but in some versions it imports absl, which JAX does not install.
        importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    except ImportError as error:
        return f"Mosaic GPU cannot be imported: {error}"
    if default_platform() == "gpu":
        device = jax.local_devices()[0]
        if getattr(device, "compute_capability", None) != _CAPABILITY:
            return (
                f"it needs a GPU of compute capability {_CAPABILITY} (Hopper: H100, H200), this is "
                f"{device.device_kind} with {getattr(device, 'compute_capability', 'none')}"
            )
    return ""


def _refuses_arguments(call: Call) -> str:
    x, window = call.x, call.convolution.window
    if x.dtype.name not in _DTYPES:
        return f"it needs {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, x is {x.dtype}"
    if window[0] * window[1] > MAX_TAPS:
        return f"windows have at most {MAX_TAPS} taps, this one is {window[0]}x{window[1]}"
    plan = _plan(x, call.convolution.kernel, call.convolution.strides, call.convolution.dilation)
    if max(math.prod(plan.input) * plan.pieces, plan.positions) >= 2**31:
        return f"an input of {x.shape} is more than 32-bit offsets reach"
    return ""


def forward(call: Call) -> Array:
    """The kernel, without a derivative.

    Under ``vmap`` a mapped batch becomes part of B; with mapped weights, its members run one after another.

    Args:
        call: Call of a single convolution.

    Raises:
        ValueError: The reason that :func:`refuses` gives.
    """
    if reason := _refuses_arguments(call):
        raise ValueError(f"pallas_gpu: {reason}")
    layer = call.convolution
    x, kernel, bias, strides, dilation = call.x, layer.kernel, layer.bias, layer.strides, layer.dilation
    output = (*call.mask.shape, kernel.shape[-1])
    if 0 in output:
        return jnp.zeros(output, x.dtype)

    @jax.custom_batching.custom_vmap
    def run(x: Array, kernel: Array, bias: Array, active: ActiveSet) -> Array:
        plan = _plan(x, kernel, strides, dilation)
        return _run(plan, x, kernel, bias, active, stated=interpreting())

    @run.def_vmap
    def _(size: int, mapped: Any, *arguments: Any) -> tuple[Array, bool]:
        arguments = jax.tree.map(
            lambda value, is_mapped: value if is_mapped else jnp.broadcast_to(value, (size, *value.shape)),
            arguments,
            tuple(mapped),
        )
        if mapped[1] or mapped[2]:
            return lax.map(lambda each: run(*each), arguments), True
        x, kernel, bias, active = arguments
        merged = active_set(active.mask.reshape(-1, *active.mask.shape[2:]))
        y = run(x.reshape(-1, *x.shape[2:]), kernel[0], bias[0], merged)
        return y.reshape(size, -1, *y.shape[1:]), True

    shift = jnp.zeros(output[-1:], x.dtype) if bias is None else bias
    return run(x, kernel, shift, call.positions)


pallas_gpu = derivative_of(gather)(forward)
"""The kernel with the derivative of ``gather``."""


def _plan(x: Array, kernel: Array, strides: Pair, dilation: Pair) -> Plan:
    device = jax.local_devices()[0]
    cores = getattr(device, "core_count", _CORES) if device.platform == "gpu" else _CORES
    exact = x.dtype == jnp.float32
    size = (x.shape[0], x.shape[1], x.shape[2])
    return make_plan(size, kernel.shape, strides, dilation, exact=exact, cores=cores)


# Always compiled as a whole: outside a compiled program, the zeros that the kernel writes into would be
# copied.
@partial(jax.jit, static_argnums=0, static_argnames="stated")
def _run(plan: Plan, x: Array, kernel: Array, bias: Array, active: ActiveSet, *, stated: bool) -> Array:
    rows, weights, shift = prepare(plan, x, kernel, bias)
    if stated:
        y = state(plan, rows, weights, shift, active, x.dtype)
    else:
        # Not imported with this module: Mosaic GPU imports slowly, and can be missing.
        from dynpix_jax.ops.sparse import pallas_gpu_kernel

        y = pallas_gpu_kernel.run(plan, rows, weights, shift, active, x.dtype)
    return y.reshape(*plan.output, plan.features)


def state(plan: Plan, rows: Array, weights: Array, bias: Array, active: ActiveSet, dtype: jnp.dtype) -> Array:
    """The kernel's plan in plain XLA: gather, multiply, add, scatter; for tests without the device.

    It runs all steps at once, and so takes the memory of all windows.
    """
    offsets, taps, first = plan.tables()
    corners, inside = plan.corners(active.indices)
    live = (inside[:, None] >> taps.reshape(-1)) & 1
    at = jnp.where(live, corners[:, None] + offsets.reshape(-1), 0)
    read = rows.reshape(-1, PIECE).at[at].get(mode="fill", fill_value=jnp.nan)
    terms = jnp.where(live[..., None], read, 0).reshape(plan.positions, -1)
    factors = weights[(first[:, None] + jnp.arange(DEPTH)).reshape(-1)]
    total = jnp.dot(terms.astype(jnp.float32), factors.astype(jnp.float32), precision="highest")
    total = (total + bias.astype(jnp.float32))[:, : plan.features].astype(dtype)
    target = jnp.where(jnp.arange(plan.positions) < active.count, active.indices, plan.positions)
    return jnp.zeros((plan.positions, plan.features), dtype).at[target].set(total, mode="drop")


def prepare(plan: Plan, x: Array, kernel: Array, bias: Array) -> tuple[Array, Array, Array]:
    """The arrays that the kernel reads.

    Returns:
        The input, 16-bit (B*H*W, parts * channels); the weights, 16-bit (parts * weight_rows, column_blocks *
        columns), with a row for each tap and channel; the bias, (column_blocks * columns,).
    """
    missing = plan.channels - x.shape[-1]
    columns = plan.column_blocks * plan.columns - plan.features
    rows = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))).reshape(-1, plan.channels)
    weights = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, columns)))
    weights = weights.reshape(-1, weights.shape[-1])
    weights = jnp.pad(weights, ((0, plan.weight_rows - weights.shape[0]), (0, 0)))
    if plan.exact:
        rows, weights = jnp.concatenate(_halves(rows), 1), jnp.concatenate(_halves(weights), 0)
    return rows, weights, jnp.pad(bias, (0, columns))


def _halves(value: Array) -> tuple[Array, Array]:
    """float32 as the sum of two bfloat16, to 2**-17 of each number."""
    # Not a cast to bfloat16 and back, which XLA may drop as excess precision.
    high = lax.reduce_precision(value, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (value - high).astype(jnp.bfloat16)
