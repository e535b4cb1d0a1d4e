"""Multiply-accumulates (MACs) of a function, counted from its jaxpr, and of a system, by layer and step.

One MAC is one multiplication with its addition, as the papers' "FLOPs" columns count (PAG: MACs / 1e10; the
HRNet family: MACs / 2**30). Only products of matrices and convolutions count: norms, activations and pooling
are free, as in the papers (``ops.resize_bilinear`` is a product of matrices and counts). Padding taps count
like any other, as everywhere in the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from dynpix_jax.core.capabilities import CountedInPart, Iterates, gated_layers, inputs_of
from dynpix_jax.core.progressive import STEP_SCOPE
from dynpix_jax.core.system import Inputs, System
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.ops.depthwise import SHIFTED, shifted_macs
from dynpix_jax.ops.interpolation import INTERPOLATION_SCOPE
from dynpix_jax.ops.platform import compiled_for
from dynpix_jax.ops.resize import RESIZE_SCOPE
from dynpix_jax.ops.winograd import PROGRAMS, convolution_macs

# Element-wise, layout, reduction, comparison, sorting and random primitives: they multiply no matrices.
_FREE_NAMES = """
    abs acos acosh add add_any and argmax argmin asin asinh atan atan2 atanh bitcast_convert_type
    broadcast_in_dim cbrt ceil clamp clz concatenate convert_element_type copy cos cosh cumlogsumexp cummax
    cummin cumprod cumsum device_put digamma div dynamic_slice dynamic_update_slice eq erf erf_inv erfc exp
    exp2 expm1 floor gather ge gt imag integer_pow iota is_finite le lgamma log log1p logistic lt max min mul
    name ne neg nextafter not optimization_barrier or pad platform_index population_count pow random_bits
    random_clone random_fold_in random_seed random_split random_unwrap random_wrap real reduce reduce_and
    reduce_max reduce_min reduce_or reduce_precision reduce_prod reduce_sum reduce_window reduce_window_max
    reduce_window_min reduce_window_sum reduce_xor rem reshape reshard rev rng_bit_generator round rsqrt
    scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub select_and_gather_add
    select_and_scatter select_and_scatter_add select_n shift_left shift_right_arithmetic shift_right_logical
    sharding_constraint sign sin sinh slice sort split sqrt square squeeze stack stop_gradient sub tan tanh
    threefry2x32 tile top_k transpose unstack xor
"""
_FREE = frozenset(_FREE_NAMES.split())
# Calls of one program that runs once. Not every primitive that holds a jaxpr is one: a Pallas kernel runs its
# own once a grid step, a shard_map once a device.
_CALLS = frozenset(
    ("jit", "closed_call", "call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
)


@dataclass(frozen=True)
class MacReport:
    """MACs of one call.

    Attributes:
        total: All of them.
        by_primitive: Per jaxpr primitive.
        by_scope: Per named scope (Flax module path), where the program carries names.
    """

    total: float
    by_primitive: dict[str, float]
    by_scope: dict[str, float]

    def without_resizing(self) -> MacReport:
        """The report without products that only resize or interpolate, as the HRNet family's papers count."""
        apart = {RESIZE_SCOPE, INTERPOLATION_SCOPE}
        kept = {scope: macs for scope, macs in self.by_scope.items() if not apart & set(scope.split("/"))}
        total = sum(kept.values())
        primitives = dict(self.by_primitive)
        if total != self.total:
            primitives["dot_general"] -= self.total - total
        return MacReport(total, primitives, kept)

    def of_modules(self, pattern: str) -> MacReport:
        """The report of the modules whose path (`module_path`) is the regex's."""
        kept = {
            scope: macs for scope, macs in self.by_scope.items() if re.fullmatch(pattern, module_path(scope))
        }
        return MacReport(sum(kept.values()), {}, kept)

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


def count_macs(fn: Callable[..., Any], *args: Any, at_most: bool = False) -> MacReport:
    """MACs of ``fn(*args)``; ``args`` may be ``jax.ShapeDtypeStruct`` trees, nothing is executed.

    Count the dense program and scale gated layers by their measured densities (`gated_macs`): a sparse
    program's loops run as often as the masks say, which a jaxpr does not know.

    Args:
        fn: A function of arrays.
        args: Its arguments.
        at_most: Count the larger branch of a choice at run time, where the branches differ.

    Raises:
        UnknownPrimitiveError: An unknown primitive, or a loop whose length is only known at run time; without
            ``at_most`` also a choice of branches that differ.
    """
    # A new function object: tracing is cached by identity, and named scopes would be those of the first call.
    with compiled_for("cpu"):  # which has the fewest products; other platforms add zeros
        jaxpr = jax.make_jaxpr(lambda *a: fn(*a))(*args)
    counts: list[tuple[str, str, float]] = []
    total = _count(jaxpr.jaxpr, 1.0, "", counts, at_most)
    primitives: dict[str, float] = {}
    scopes: dict[str, float] = {}
    for primitive, scope, macs in counts:
        primitives[primitive] = primitives.get(primitive, 0.0) + macs
        scopes[scope] = scopes.get(scope, 0.0) + macs
    return MacReport(total, primitives, scopes)


def jaxpr_macs(jaxpr: Any, *, at_most: bool = False) -> float:
    """MACs of a traced program.

    Raises:
        UnknownPrimitiveError: As `count_macs`.
    """
    return _count(jaxpr, 1.0, "", [], at_most)


def _count(
    jaxpr: Any, times: float, prefix: str, counts: list[tuple[str, str, float]], at_most: bool
) -> float:
    """MACs of ``times`` runs; appends (primitive, scope, MACs) of each product."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        # Names restart inside a call: the caller's go before them.
        scope = "/".join(filter(None, (prefix, str(eqn.source_info.name_stack))))
        if (product := _product_macs(eqn)) is not None:
            kind, macs = product
            counts.append((kind, scope, times * macs))
            total += times * macs
        elif name == "scan":
            total += _count(eqn.params["jaxpr"].jaxpr, times * eqn.params["length"], scope, counts, at_most)
        elif name == "cond":
            total += _count_cond(eqn, times, scope, counts, at_most)
        elif name == "while":
            parts = (eqn.params["body_jaxpr"], eqn.params["cond_jaxpr"])
            if any(_count(part.jaxpr, times, scope, [], at_most) for part in parts):
                raise UnknownPrimitiveError(
                    "while: how often it runs is known at run time only; count the dense program instead"
                )
        elif name in _CALLS:
            inner = [
                value for value in eqn.params.values() if isinstance(value, core.ClosedJaxpr | core.Jaxpr)
            ]
            if len(inner) != 1:
                raise UnknownPrimitiveError(f"{name}: expected a call of one program, found {len(inner)}")
            total += _count(getattr(inner[0], "jaxpr", inner[0]), times, scope, counts, at_most)
        elif name not in _FREE:
            raise UnknownPrimitiveError(
                f"{name}: its MACs are not known; expected dot_general, conv_general_dilated, scan, cond, "
                "a call, or a primitive that multiplies no matrices"
            )
    return total


def _product_macs(eqn: Any) -> tuple[str, float] | None:
    """(kind, MACs) of a product; None for other primitives and for calls of programs."""
    name = eqn.primitive.name
    if name == "dot_general":
        return name, _dot_macs(eqn)
    if name == "conv_general_dilated":
        return name, _conv_macs(eqn)
    if name == "jit" and eqn.params["name"] == SHIFTED:
        return SHIFTED, shifted_macs(eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape)
    if name == "jit" and eqn.params["name"] in PROGRAMS:
        return "conv_general_dilated", convolution_macs(*(value.aval.shape for value in eqn.invars[:2]))
    return None


def _count_cond(
    eqn: Any, times: float, scope: str, counts: list[tuple[str, str, float]], at_most: bool
) -> float:
    programs = [branch.jaxpr for branch in eqn.params["branches"]]
    if "branches_platforms" in eqn.params:  # programs for the same values; a CPU's comes first
        return _count(programs[0], times, scope, counts, at_most)
    branches = [_count(program, times, scope, [], at_most) for program in programs]
    if len(set(branches)) != 1 and not at_most:
        raise UnknownPrimitiveError(
            f"cond: its branches cost {branches} MACs and the choice is known at run time only; "
            "count the dense program instead"
        )
    return _count(programs[branches.index(max(branches))], times, scope, counts, at_most)


def _dot_macs(eqn: Any) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
    return float(depth * math.prod(eqn.outvars[0].aval.shape))


def _conv_macs(eqn: Any) -> float:
    image, kernel, numbers = (
        eqn.invars[0].aval.shape,
        eqn.invars[1].aval.shape,
        eqn.params["dimension_numbers"],
    )
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    if math.prod(eqn.params["lhs_dilation"]) > 1:
        # Transposed: every input value meets the whole kernel; the zeros between the inputs are no work.
        features_out, groups = kernel[numbers.rhs_spec[0]], eqn.params["feature_group_count"]
        macs = float(math.prod(image) * taps * features_out) / (groups * eqn.params["batch_group_count"])
        return macs / math.prod(eqn.params["window_strides"])
    # rhs_spec is (out features, in features, spatial...); grouped kernels already hold in features / groups.
    return float(taps * kernel[numbers.rhs_spec[1]] * math.prod(eqn.outvars[0].aval.shape))


@dataclass(frozen=True)
class SystemMacs:
    """MACs of a system on one (H, W) image.

    Attributes:
        report: MACs of the dense program, with every gate and branch open.
        steps: MACs of each step of a system that predicts in steps, nothing skipped; () of others.
        layers: MACs of each gated layer at density 1 in each step (in all, where there are no steps).
    """

    report: MacReport
    steps: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]

    @property
    def gated(self) -> dict[str, float]:
        """MACs of each gated layer at density 1: what a skipped share of it saves."""
        return {name: sum(macs) for name, macs in self.layers.items()}

    def of_step(self, index: int, shares: Mapping[str, Any]) -> Any:
        """MACs of a step whose gated layers are executed at ``shares``; those without one run everywhere.

        Shares are numbers, or arrays (B,) of several images; so is the result.
        """
        skipped = (macs[index] * (1 - shares[name]) for name, macs in self.layers.items() if name in shares)
        return self.steps[index] - sum(skipped)

    def up_to_predictions(self, shares: Mapping[str, Any]) -> tuple[Any, ...]:
        """MACs up to each exit and the last prediction; () where there are no steps."""
        return tuple(accumulate(self.of_step(index, shares) for index in range(len(self.steps))))

    def executed(self, shares: Mapping[str, Any]) -> Any:
        """MACs of the whole network, gated layers executed at ``shares``."""
        return executed_macs(self.report.total, self.gated, shares)


def system_macs(system: System, size: tuple[int, int]) -> SystemMacs:
    """Counts the dense program of a system; nothing is executed.

    Raises:
        ValueError: The scopes of a gated layer hold no product.
    """
    macs = _by_layer(system, dense_report(system, size))
    for name, of_layer in macs.layers.items():
        if not any(of_layer):
            raise ValueError(f"{name}: there is no product in its scopes {gated_layers(system)[name].scopes}")
    return macs


def macs_in_paper(system: System, macs: SystemMacs) -> SystemMacs:
    """What the paper's tables count of the MACs of a system; of most that is everything."""
    if not isinstance(system, CountedInPart):
        return macs
    return _by_layer(system, macs.report.of_modules(system.counted_in_paper))


def _by_layer(system: System, report: MacReport) -> SystemMacs:
    """The steps and gated layers of a report."""
    found = [(module_path(scope), macs) for scope, macs in report.by_scope.items()]
    at = [_step_of(path) for path, _ in found]
    count = max((step + 1 for step in at if step is not None), default=0)

    def by_step(scopes: Sequence[str]) -> tuple[float, ...]:
        macs = [0.0] * max(count, 1)
        for (path, value), step in zip(found, at, strict=True):
            if any(re.fullmatch(f"(?:{scope})(?:/.*)?", path) for scope in scopes):
                macs[step or 0] += value
        return tuple(macs)

    layers = {name: by_step(layer.scopes) for name, layer in gated_layers(system).items()}
    return SystemMacs(report, by_step((".*",)) if count else (), layers)


def gated_macs(system: System, size: tuple[int, int]) -> dict[str, float]:
    """MACs of each gated layer of a system for one (H, W) image at density 1; {} without."""
    return system_macs(system, size).gated


def executed_macs(dense: float, gated: Mapping[str, float], shares: Mapping[str, Any]) -> Any:
    """MACs of an image whose gated layers ran at ``shares`` of their positions."""
    return dense - sum(macs * (1.0 - shares[name]) for name, macs in gated.items())


def dense_report(system: System, size: tuple[int, int]) -> MacReport:
    """MACs of the dense forward pass of one (H, W) image, as the system counts; nothing is executed."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    def predict(variables: Variables, images: Array, inputs: Inputs) -> dict[str, Array]:
        if isinstance(system, Iterates):
            return system.dense_predictions(variables, images, inputs)
        outputs = system.apply(variables, images, inputs)
        return outputs.predictions

    report = count_macs(predict, variable_shapes(system), images, input_shapes(system, size))
    return report if system.counts_resizing else report.without_resizing()


def variable_shapes(system: System) -> Variables:
    """Shapes and dtypes of a system's variables, the caller's own; nothing is executed."""
    return jax.tree.map(lambda shape: shape, system.variable_shapes)


def input_shapes(system: System, size: tuple[int, int], batch: int = 1) -> Inputs:
    """Shapes and dtypes of what the system takes beside images of ``size`` (H, W)."""
    return {name: jax.ShapeDtypeStruct((batch, *size), jnp.float32) for name in inputs_of(system)}


def module_path(scope: str) -> str:
    """The modules and named scopes in a scope of `MacReport.by_scope`: "backbone/res4_2/conv2".

    Without the network itself, methods ("loop.refine") and products.
    """
    modules: list[str] = []
    for name in scope.split("/"):
        module, is_method, _ = name.partition(".")
        # Classes name the root, and the modules that a method of theirs was called on.
        inside = [known for known in modules if not known.startswith(STEP_SCOPE)]
        if not name or "->" in name or (module[:1].isupper() and (is_method or not inside)):
            continue
        if modules[-1:] != [module]:
            modules.append(module)
    return "/".join(modules)


def _step_of(path: str) -> int | None:
    for name in path.split("/"):
        if name.startswith(STEP_SCOPE):
            return int(name.removeprefix(STEP_SCOPE))
    return None
