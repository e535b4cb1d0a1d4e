"""Active positions only, as a Pallas kernel for NVIDIA Hopper GPUs (Mosaic GPU, wgmma).

The convolution is an implicit matrix product with one row for each active position: the window of a position
is gathered while the product runs and never written out. A block takes 128 active positions from anywhere,
so masks of independent pixels save as much as blobs; strides and dilation are arithmetic on indices. What
follows the convolution is computed on its sums. Results are written to their positions, in place.

float32 runs as three products of bfloat16 halves, summed in float32: its error is below 1e-5 of the largest
result, where TF32 has some 1e-3. Infinities become nan.

``pallas_gpu_kernel.py`` is the kernel, ``pallas_gpu_plan.py`` lists its reads of each step,
``pallas_gpu_threads.py`` has the work of single threads, ``pallas_gpu_simulated.py`` the same for Mosaic
GPU's interpreter, in which the tests run the kernel. They compile it ahead of time for an H100, too; ``dynpix
bench device`` checks and measures it on a device.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array
from dynpix_jax.ops.platform import device_here
from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.call import Call
from dynpix_jax.ops.sparse.fusion import apply, fusible, groups, join, shortcut_steps, shortcut_vectors
from dynpix_jax.ops.sparse.gather import gather
from dynpix_jax.ops.sparse.interpret import interpreting
from dynpix_jax.ops.sparse.layers import Convolution
from dynpix_jax.ops.sparse.pallas_gpu_plan import DEPTH, MAX_TAPS, PIECE, Finish, Lists, Plan, make_plan
from dynpix_jax.ops.sparse.vjp import derivative_of

if TYPE_CHECKING:
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

_DTYPES = ("bfloat16", "float16", "float32")

# Only compute capability 9.0 has the instruction wgmma; later GPUs multiply matrices in other ways.
_CAPABILITY = "9.0"

# Multiprocessors of an H100 or H200 (SXM): the kernel is planned for them if there is no device.
_CORES = 132


def fuses(call: Call) -> bool:
    """Whether the kernel runs the chain as a whole: every layer and the shortcut."""
    return fusible(call)


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
    device = device_here()
    if device is not None and device.platform == "gpu":
        capability = getattr(device, "compute_capability", None)
        if capability != _CAPABILITY:
            return (
                f"it needs a GPU of compute capability {_CAPABILITY} (Hopper: H100, H200), this is "
                f"{device.device_kind} with {capability}"
            )
    return ""


def _refuses_arguments(call: Call) -> str:
    x, window = call.x, call.convolution.window
    if x.dtype.name not in _DTYPES:
        return f"it needs {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, x is {x.dtype}"
    if window[0] * window[1] > MAX_TAPS:
        return f"windows have at most {MAX_TAPS} taps, this one is {window[0]}x{window[1]}"
    plan = _plan(x, call.convolution)
    if max(math.prod(plan.input) * plan.pieces, plan.positions) >= 2**31:
        return f"an input of {x.shape} is more than 32-bit offsets reach"
    return ""


def forward(call: Call, *, interpret: InterpretGPUParams | bool | None = None) -> Array:
    """The kernel, without a derivative.

    Under ``vmap`` a mapped batch becomes part of B; with mapped layers, its members run one after another.

    Args:
        call: A chain that the kernel :func:`fuses`.
        interpret: Runs it on any machine: with ``InterpretGPUParams`` the kernel itself, slowly, in Mosaic
            GPU's interpreter; with True its plan, in plain XLA. None:
            :func:`~dynpix_jax.ops.sparse.interpret.interpreting`.

    Raises:
        ValueError: The reason that :func:`refuses` gives.
    """
    if reason := _refuses_arguments(call):
        raise ValueError(f"pallas_gpu: {reason}")
    mode = interpreting() if interpret is None else interpret
    shape = (*call.mask.shape, groups(call)[-1].convolution.kernel.shape[-1])
    dtype = call.x.dtype if call.init is None else call.init.dtype
    if 0 in shape:
        return jnp.zeros(shape, dtype)

    @jax.custom_batching.custom_vmap
    def run(x: Array, init: Array, active: ActiveSet, others: Any) -> Array:
        layers, combine = others
        return _run(Call(x, active, layers, combine, init), mode)

    @run.def_vmap
    def _(size: int, mapped: Any, *arguments: Any) -> tuple[Array, bool]:
        x, init, active, others = jax.tree.map(
            lambda value, is_mapped: value if is_mapped else jnp.broadcast_to(value, (size, *value.shape)),
            arguments,
            tuple(mapped),
        )
        if any(jax.tree.leaves(mapped[3])):
            return lax.map(lambda each: run(*each), (x, init, active, others)), True
        merged = active_set(active.mask.reshape(-1, *active.mask.shape[2:]))
        x, init = (value.reshape(-1, *value.shape[2:]) for value in (x, init))
        y = run(x, init, merged, arguments[3])
        return y.reshape(size, -1, *y.shape[1:]), True

    init = jnp.zeros(shape, dtype) if call.init is None else call.init
    return call.with_idle(run(call.x, init, call.positions, (call.layers, call.combine)))


pallas_gpu = derivative_of(gather)(forward)
"""The kernel with the derivative of ``gather``."""


def _plan(x: Array, layer: Convolution) -> Plan:
    device = device_here()
    cores = getattr(device, "core_count", _CORES) if device and device.platform == "gpu" else _CORES
    exact = x.dtype == jnp.float32
    size = (x.shape[0], x.shape[1], x.shape[2])
    return make_plan(size, layer.kernel.shape, layer.strides, layer.dilation, exact=exact, cores=cores)


# Always compiled as a whole: outside a compiled program, the map that the kernel writes into would be copied.
@partial(jax.jit, static_argnums=1)
def _run(call: Call, interpret: Any) -> Array:
    """A kernel for each convolution; between them lie the active rows only, one after another."""
    run = state
    if interpret is not True:
        # Not imported with this module: Mosaic GPU imports slowly, and can be missing.
        from dynpix_jax.ops.sparse import pallas_gpu_kernel

        run = partial(pallas_gpu_kernel.run, interpret=interpret or None)
    active, parts, x = call.positions, groups(call), call.x
    ranks = jnp.arange(active.indices.size, dtype=jnp.int32)
    for i, group in enumerate(parts):
        plan, last = _plan(x, group.convolution), i == len(parts) - 1
        finish, vectors = Finish(group.steps), group.vectors()
        out: Array | jax.ShapeDtypeStruct = jax.ShapeDtypeStruct((plan.positions, plan.features), x.dtype)
        if last:
            assert call.init is not None
            out = call.init.reshape(plan.positions, plan.features)
            finish, vectors = Finish(group.steps, shortcut_steps(call)), vectors + shortcut_vectors(call)
        arrays = prepare(plan, x, group.convolution.kernel, vectors)
        lists = Lists(active.indices if i == 0 else ranks, active.indices if last else ranks, active.count)
        y = run(plan, finish, arrays, lists, out)
        x = y[None, None]
    return y.reshape(*active.shape, -1)


def state(
    plan: Plan,
    finish: Finish,
    arrays: tuple[Array, Array, Array],
    lists: Lists,
    out: Array | jax.ShapeDtypeStruct,
) -> Array:
    """The kernel's plan in plain XLA: gather, multiply, finish, scatter; for whole models without the device.

    It runs all steps at once, and so takes the memory of all windows.
    """
    rows, weights, vectors = arrays
    offsets, taps, first = plan.tables()
    rank = jnp.arange(plan.positions)
    corners, inside = plan.corners(jnp.where(rank < lists.number, lists.sources, plan.positions))
    live = (inside[:, None] >> taps.reshape(-1)) & 1
    at = jnp.where(live, corners[:, None] + offsets.reshape(-1), 0)
    read = rows.reshape(-1, PIECE).at[at].get(mode="fill", fill_value=jnp.nan)
    terms = jnp.where(live[..., None], read, 0).reshape(plan.positions, -1)
    factors = weights[(first[:, None] + jnp.arange(DEPTH)).reshape(-1)]
    total = jnp.dot(terms.astype(jnp.float32), factors.astype(jnp.float32), precision="highest")
    vector = iter(vectors[:, : plan.features]).__next__
    total = apply(finish.steps, total[:, : plan.features], vector)
    start = jnp.zeros(out.shape, out.dtype) if isinstance(out, jax.ShapeDtypeStruct) else out
    target = jnp.where(rank < lists.number, lists.targets, plan.positions)
    current = start.at[target].get(mode="fill", fill_value=0).astype(jnp.float32)
    total = join(finish.shortcut, total, current, vector)
    return start.at[target].set(total.astype(start.dtype), mode="drop")


def prepare(plan: Plan, x: Array, kernel: Array, vectors: Sequence[Array]) -> tuple[Array, Array, Array]:
    """The arrays that the kernel reads.

    Returns:
        The input, 16-bit (B*H*W, parts * channels); the weights, 16-bit (parts * weight_rows, column_blocks *
        columns), with a row for each tap and channel; the vectors, float32 (n, column_blocks * columns).
    """
    missing = plan.channels - x.shape[-1]
    columns = plan.column_blocks * plan.columns - plan.features
    rows = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))).reshape(-1, plan.channels)
    weights = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, columns)))
    weights = weights.reshape(-1, weights.shape[-1])
    weights = jnp.pad(weights, ((0, plan.weight_rows - weights.shape[0]), (0, 0)))
    if plan.exact:
        rows, weights = jnp.concatenate(_halves(rows), 1), jnp.concatenate(_halves(weights), 0)
    stacked = jnp.stack(vectors) if vectors else jnp.zeros((1, plan.features))
    return rows, weights, jnp.pad(stacked, ((0, 0), (0, columns)))


def _halves(value: Array) -> tuple[Array, Array]:
    """float32 as the sum of two bfloat16, to 2**-17 of each number."""
    # Not a cast to bfloat16 and back, which XLA may drop as excess precision.
    high = lax.reduce_precision(value, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (value - high).astype(jnp.bfloat16)
