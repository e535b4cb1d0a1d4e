"""Multiply-accumulates (MACs) of a function, counted from its jaxpr.

One MAC is one multiplication with its addition, as the papers' "FLOPs" columns count (PAG: MACs / 1e10; the HRNet
family: MACs / 2**30). Only products of matrices and convolutions count: norms, activations, pooling and resizing are
free, as in the papers. Padding taps count like any other, as everywhere in the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

# Element-wise, layout, reduction, comparison and random primitives: they multiply no matrices.
_FREE = frozenset(
    """
    abs acos add add_any and argmax argmin asin atan atan2 bitcast_convert_type broadcast_in_dim ceil clamp
    concatenate convert_element_type copy copy_p cos cosh cumlogsumexp cummax cummin cumprod cumsum device_put div
    dynamic_slice dynamic_update_slice eq erf erf_inv erfc exp exp2 expand_dims expm1 floor gather ge gt imag
    integer_pow iota is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not optimization_barrier or
    pad pow random_bits random_clone random_fold_in random_seed random_split random_unwrap random_wrap real
    reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_prod reduce_sum reduce_window
    reduce_window_max reduce_window_min reduce_window_sum rem reshape rev round rsqrt scatter scatter-add scatter_add
    scatter_max scatter_min scatter_mul select_and_gather_add select_and_scatter_add select_n shift_left
    shift_right_arithmetic shift_right_logical sharding_constraint sign sin sinh slice sort split sqrt square squeeze
    stop_gradient sub tan tanh threefry2x32 top_k transpose unreduced_psum xor zeros_like
    """.split()
)


@dataclass(frozen=True)
class MacReport:
    """MACs of one call.

    total: all of them. by_primitive: per jaxpr primitive. by_scope: per named scope (Flax module path), where the
    program carries names.
    """

    total: float
    by_primitive: dict[str, float]
    by_scope: dict[str, float]

    @property
    def flops(self) -> float:
        """2 x MACs."""
        return 2 * self.total

    @property
    def gibi(self) -> float:
        """MACs / 2**30, the "GFLOPs" of the HRNet family's papers."""
        return self.total / 2**30


class UnknownPrimitiveError(ValueError):
    """A primitive whose MACs are not known, or depend on the data."""


def count_macs(fn: Callable[..., Any], *args: Any) -> MacReport:
    """MACs of ``fn(*args)``; ``args`` may be ``jax.ShapeDtypeStruct`` trees, nothing is executed.

    Count the dense program and scale gated layers by their measured densities (``System.gated_macs``): a sparse
    program's loops run as often as the masks say, which a jaxpr does not know.

    Raises:
        UnknownPrimitiveError: an unknown primitive, or a loop whose number of turns is only known at run time.
    """
    # A new function object: tracing is cached by identity, and named scopes would be those of the first call.
    jaxpr = jax.make_jaxpr(lambda *a: fn(*a))(*args)
    primitives: dict[str, float] = {}
    scopes: dict[str, float] = {}
    total = _count(jaxpr.jaxpr, 1.0, primitives, scopes)
    return MacReport(total, primitives, scopes)


def _count(jaxpr: Any, times: float, primitives: dict[str, float], scopes: dict[str, float]) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            macs = times * (_dot_macs(eqn) if name == "dot_general" else _conv_macs(eqn))
            scope = str(eqn.source_info.name_stack)
            primitives[name] = primitives.get(name, 0.0) + macs
            scopes[scope] = scopes.get(scope, 0.0) + macs
            total += macs
        elif name == "scan":
            total += _count(eqn.params["jaxpr"].jaxpr, times * eqn.params["length"], primitives, scopes)
        elif name == "cond":
            total += _count_cond(eqn, times, primitives, scopes)
        elif name == "while":
            body = _count(eqn.params["body_jaxpr"].jaxpr, times, {}, {})
            if body or _count(eqn.params["cond_jaxpr"].jaxpr, times, {}, {}):
                raise UnknownPrimitiveError(
                    "while: how often it runs is known at run time only; count the dense program instead"
                )
        elif name not in _FREE:
            inner = [value for value in eqn.params.values() if isinstance(value, core.ClosedJaxpr | core.Jaxpr)]
            # Calls (jit, custom_jvp_call, custom_vjp_call, remat, ...) carry the one program that runs.
            if len(inner) != 1:
                raise UnknownPrimitiveError(f"{name}: its MACs are not known; expected one of dot_general, "
                                            "conv_general_dilated, scan, cond, calls, or a free primitive")
            total += _count(getattr(inner[0], "jaxpr", inner[0]), times, primitives, scopes)
    return total


def _count_cond(eqn: Any, times: float, primitives: dict[str, float], scopes: dict[str, float]) -> float:
    counts = [_count(branch.jaxpr, times, {}, {}) for branch in eqn.params["branches"]]
    if len(set(counts)) != 1:
        raise UnknownPrimitiveError(
            f"cond: its branches cost {counts} MACs and the choice is known at run time only; count the dense program"
        )
    return _count(eqn.params["branches"][0].jaxpr, times, primitives, scopes)


def _dot_macs(eqn: Any) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
    return float(depth * math.prod(eqn.outvars[0].aval.shape))


def _conv_macs(eqn: Any) -> float:
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    # rhs_spec is (out features, in features, spatial...); grouped kernels already hold in features / groups.
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
    return float(window * math.prod(eqn.outvars[0].aval.shape)) / eqn.params.get("batch_group_count", 1)
