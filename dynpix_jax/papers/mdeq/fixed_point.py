"""Fixed points z = f(z): limited-memory Broyden and Anderson, and gradients by the implicit function theorem.

Solvers are pure functions of vectors (B, D), one per image: a batch is B independent problems. An image that
has converged or diverged is no longer updated, so its result does not depend on the others (unless
``SolverConfig.stops`` says "batch"). `flatten` makes such vectors of feature maps of several resolutions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from dynpix_jax.core.typing import Array, PRNGKey

Function = Callable[[Array], Array]
"""(B, D) -> (B, D); image b of the result depends on image b of the argument only."""

DIVERGED = 1e6
"""A residual this many times the first one ends the search (Bai et al., MDEQ's release)."""


@dataclass(frozen=True)
class SolverConfig:
    """Settings of the search for a fixed point.

    Attributes:
        method: ``broyden`` or ``anderson``.
        iterations: Limit of iterations; each applies f once, and so does the start.
        tolerance: An image has converged when its error is at most this.
        error: ``absolute``, the root mean square of f(z) - z over the image's values, or ``relative``, the
            norm of f(z) - z divided by that of f(z).
        memory: Number of rank-one terms of Broyden's inverse Jacobian, or of iterates that Anderson mixes.
        regularization: Regularization of Anderson's least squares, relative to the largest residual in
            memory.
        mixing: Anderson's beta. Broyden reads neither this nor ``regularization``.
        stops: Each ``image`` ends its search, and keeps its best iterate, on its own; or the whole ``batch``
            does by the errors of all images together, as in MDEQ's release.
        forgets: When Broyden's memory is full, its oldest term is dropped ``before`` the new one is computed,
            which then meets the secant condition, or ``after``, as in MDEQ's release.
    """

    method: Literal["broyden", "anderson"] = "broyden"
    iterations: int = 27
    tolerance: float = 1e-5
    error: Literal["absolute", "relative"] = "absolute"
    memory: int = 27
    regularization: float = 1e-4
    mixing: float = 1.0
    stops: Literal["image", "batch"] = "image"
    forgets: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        for name in ("iterations", "memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; expected at least 1")
        for name in ("tolerance", "regularization"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")
        if not 0 < self.mixing <= 1:
            raise ValueError(f"mixing: {self.mixing}; expected a number in (0, 1]")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        if self.method == "anderson":
            return {"forgets": "method 'anderson' mixes iterates and has no terms"}
        reasons = dict.fromkeys(("regularization", "mixing"), "they are of method 'anderson'")
        if self.memory >= self.iterations:
            reasons["forgets"] = "memory has room for a term an iteration"
        return reasons


@dataclass(frozen=True)
class ImplicitConfig:
    """How training passes through a fixed point z*.

    Attributes:
        gives: The result of the search, in training: ``found`` is z*, as in evaluation; ``applied`` is f(z*),
            as in MDEQ's release.
        start: First iterate of the search for the gradient: the gradient of the ``loss`` by z*, or ``zero``,
            as in MDEQ's release. From zero, one application of f leads to the gradient of the loss.
    """

    gives: Literal["found", "applied"] = "found"
    start: Literal["loss", "zero"] = "loss"


@flax.struct.dataclass
class SolverState:
    """State of a search; `advance` continues it.

    Attributes:
        z: (B, D), the latest iterate.
        residual: (B, D), f(z) - z.
        step: (B, D), the update of z in the next iteration.
        memory: Two arrays (B, M, D).
        iteration: (), iterations of the search.
        iterations: (B,), iterations of each image.
        best: (B, D), the iterate with the lowest error.
        error: (B,), error of ``best``.
        first: (B,), norm of the first residual.
        converged: (B,) bool.
        diverged: (B,) bool.
        trace: (limit + 1, B), the errors of all iterates, NaN after the last.
    """

    z: Array
    residual: Array
    step: Array
    memory: tuple[Array, Array]
    iteration: Array
    iterations: Array
    best: Array
    error: Array
    first: Array
    converged: Array
    diverged: Array
    trace: Array


@flax.struct.dataclass
class Stats:
    """Result of a search: its error, iterations and flags, each (B,), and the trace (limit + 1, B)."""

    error: Array
    iterations: Array
    converged: Array
    diverged: Array
    trace: Array


def start(f: Function, z: Array, config: SolverConfig) -> SolverState:
    """Begins a search: applies f to the start (B, D), a floating array."""
    if z.ndim != 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"start: z must be (B, D) and floating, got {z.shape} {z.dtype}")
    batch, size = z.shape
    residual = f(z) - z
    first = _norm(residual, config)
    slots = min(config.memory, config.iterations + (config.method == "anderson"))
    blank = jnp.zeros((batch, slots, size), z.dtype)
    memory = (blank, blank)
    if config.method == "anderson":
        memory = (blank.at[:, 0].set(z), blank.at[:, 0].set(residual))
    error = _error(z, residual, config)
    diverged = ~jnp.isfinite(first)
    nan = jnp.full((config.iterations + 1, batch), jnp.nan, error.dtype)
    return SolverState(
        z=z,
        residual=residual,
        step=(config.mixing if config.method == "anderson" else 1.0) * residual,
        memory=memory,
        iteration=jnp.zeros((), jnp.int32),
        iterations=jnp.zeros(batch, jnp.int32),
        best=z,
        error=jnp.where(diverged, jnp.inf, error),
        first=first,
        converged=error <= config.tolerance,
        diverged=diverged,
        trace=nan.at[0].set(error),
    )


def advance(
    f: Function, state: SolverState, config: SolverConfig, until: int | Array | None = None
) -> SolverState:
    """Continues to iteration ``until`` (may be traced) or the limit, or until all images have ended."""
    limit = config.iterations if until is None else jnp.minimum(until, config.iterations)

    def goes_on(state: SolverState) -> Array:
        return (state.iteration < limit) & ~jnp.all(state.converged | state.diverged)

    return lax.while_loop(goes_on, partial(_iterate, f, config), state)


def stats(state: SolverState) -> Stats:
    """Stats of a search so far."""
    return Stats(state.error, state.iterations, state.converged, state.diverged, state.trace)


def solve(f: Function, z: Array, config: SolverConfig) -> tuple[Array, Stats]:
    """The iterate with the lowest error (B, D), from the start ``z``. No gradient: see `fixed_point`."""
    state = advance(f, start(f, z, config), config)
    return state.best, stats(state)


def _iterate(f: Function, config: SolverConfig, state: SolverState) -> SolverState:
    ended = state.converged | state.diverged
    z = state.z + jnp.where(ended[:, None], 0.0, state.step)
    residual = f(z) - z
    norm, error = _norm(residual, config), _error(z, residual, config)
    diverged = ~ended & (~jnp.isfinite(norm) | (norm > DIVERGED * state.first))
    better = ~ended & ~diverged & (error < state.error)
    best = jnp.where(better[:, None], z, state.best)
    update = _broyden if config.method == "broyden" else _anderson
    step, memory = update(config, state, z, residual)
    iteration = state.iteration + 1
    return SolverState(
        # Diverged images go back to an iterate at which f is finite.
        z=jnp.where(diverged[:, None], best, z),
        residual=jnp.where(diverged[:, None], 0.0, residual),
        step=step,
        memory=memory,
        iteration=iteration,
        iterations=state.iterations + ~ended,
        best=best,
        error=jnp.where(better, error, state.error),
        first=state.first,
        converged=state.converged | (~ended & ~diverged & (error <= config.tolerance)),
        diverged=state.diverged | diverged,
        trace=state.trace.at[iteration].set(jnp.where(ended, jnp.nan, error)),
    )


def _broyden(
    config: SolverConfig, state: SolverState, z: Array, residual: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Broyden's good method: the inverse Jacobian of the residual is -I + sum of left_k right_k^T."""
    left, right = state.memory
    slot = state.iteration % left.shape[1]
    if config.forgets == "before":
        left, right = left.at[:, slot].set(0.0), right.at[:, slot].set(0.0)
    moved, changed = z - state.z, residual - state.residual
    row = _combine(right, _dots(left, moved)) - moved
    gap = moved + changed - _combine(left, _dots(right, changed))
    scale = (row * changed).sum(-1, keepdims=True)
    usable = jnp.isfinite(scale) & (scale != 0)
    column = jnp.where(usable, gap / jnp.where(usable, scale, 1.0), 0.0)
    usable = usable & jnp.isfinite(column).all(-1, keepdims=True)
    left = left.at[:, slot].set(jnp.where(usable, column, 0.0))
    right = right.at[:, slot].set(jnp.where(usable, row, 0.0))
    return residual - _combine(left, _dots(right, residual)), (left, right)


def _anderson(
    config: SolverConfig, state: SolverState, z: Array, residual: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Anderson mixing: the combination of the iterates in memory whose residuals cancel best."""
    iterates, residuals = state.memory
    slots = iterates.shape[1]
    slot = (state.iteration + 1) % slots
    iterates, residuals = iterates.at[:, slot].set(z), residuals.at[:, slot].set(residual)
    filled = jnp.arange(slots) < jnp.minimum(state.iteration + 2, slots)
    gram = jnp.einsum("bmd,bnd->bmn", residuals, residuals, precision=lax.Precision.HIGHEST)
    largest = gram.diagonal(axis1=1, axis2=2).max(-1)
    # Scaled, so that the system can be solved for any size of residuals.
    gram = gram / jnp.where(largest > 0, largest, 1.0)[:, None, None]
    gram = gram + jnp.diag(jnp.where(filled, config.regularization, 1.0))
    ones = jnp.broadcast_to(filled.astype(gram.dtype), gram.shape[:2])
    weights = jnp.linalg.solve(gram, ones[..., None])[..., 0]
    weights = weights / weights.sum(-1, keepdims=True)
    mixed = _combine(iterates, weights) + config.mixing * _combine(residuals, weights)
    usable = jnp.isfinite(mixed).all(-1, keepdims=True)
    return jnp.where(usable, mixed - z, config.mixing * residual), (iterates, residuals)


def _dots(rows: Array, x: Array) -> Array:
    return jnp.einsum("bmd,bd->bm", rows, x, precision=lax.Precision.HIGHEST)


def _combine(rows: Array, weights: Array) -> Array:
    return jnp.einsum("bmd,bm->bd", rows, weights, precision=lax.Precision.HIGHEST)


def _norm(x: Array, config: SolverConfig) -> Array:
    """(B,) norms of (B, D); all the same where the batch stops as one."""
    squares = jnp.sum(x * x, -1)
    if config.stops == "batch":
        squares = jnp.broadcast_to(squares.sum(), squares.shape)
    return jnp.sqrt(squares)


def _error(z: Array, residual: Array, config: SolverConfig) -> Array:
    if config.error == "absolute":
        return _norm(residual, config) / math.sqrt(z.size if config.stops == "batch" else z.shape[1])
    # At a fixed point of 0 both norms are 0.
    return _norm(residual, config) / jnp.maximum(_norm(z + residual, config), jnp.finfo(z.dtype).tiny)


def flatten(tree: Any) -> Array:
    """Arrays (B, ...) as vectors (B, D)."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], 1)


def unflatten(vectors: Array, like: Any) -> Any:
    """Inverse of `flatten`; ``like`` is a tree of arrays or ``jax.ShapeDtypeStruct``s."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(math.prod(leaf.shape[1:]) for leaf in leaves))
    parts = jnp.split(vectors, ends[:-1], axis=1)
    pairs = zip(parts, leaves, strict=True)
    return jax.tree.unflatten(structure, [part.reshape(len(part), *leaf.shape[1:]) for part, leaf in pairs])


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def fixed_point(
    f: Callable[[Any, Array], Array],
    theta: Any,
    z: Array,
    forward: SolverConfig,
    backward: SolverConfig,
    implicit: ImplicitConfig = ImplicitConfig(),
) -> tuple[Array, Stats]:
    """The fixed point of f(theta, .) near ``z`` (B, D), differentiable with respect to theta.

    With J = df/dz at the fixed point, the gradient of a loss is u^T df/dtheta with u = loss' + J^T u (Bai et
    al., NeurIPS 2019, theorem 1); u is a fixed point too, and a solver of the same kind finds it. Iterations
    are not stored, so the memory does not grow with their number. The start ``z`` has no gradient.

    Args:
        f: Must not close over values that are differentiated.
        forward: Settings of the search for the fixed point.
        backward: Settings of the search for u. It falls back to its start if it diverges: to the gradient
            through one application of f, or to none.
        implicit: What is given back, and where the search for u starts. J is that at what is given back.
    """
    return _fixed_point_forward(f, theta, z, forward, backward, implicit)[0]


def _fixed_point_forward(
    f: Callable[[Any, Array], Array],
    theta: Any,
    z: Array,
    forward: SolverConfig,
    backward: SolverConfig,
    implicit: ImplicitConfig,
) -> tuple[tuple[Array, Stats], tuple[Any, Array, Array]]:
    found, numbers = solve(partial(f, theta), z, forward)
    given = f(theta, found) if implicit.gives == "applied" else found
    return (given, numbers), (theta, found, given)


def _fixed_point_backward(
    f: Callable[[Any, Array], Array],
    forward: SolverConfig,
    backward: SolverConfig,
    implicit: ImplicitConfig,
    saved: tuple[Any, Array, Array],
    cotangents: tuple[Array, Any],
) -> tuple[Any, Array]:
    (theta, found, given), gradient = saved, cotangents[0]
    _, pull = jax.vjp(f, theta, found)
    # Here u^T df/dtheta is taken at z*, where f was applied, and J at what that gave, as in the release.
    pull_z = jax.vjp(partial(f, theta), given)[1] if implicit.gives == "applied" else lambda u: pull(u)[1:]
    start = gradient if implicit.start == "loss" else jnp.zeros_like(gradient)
    adjoint, _ = solve(lambda u: gradient + pull_z(u)[0], start, backward)
    return pull(adjoint)[0], jnp.zeros_like(gradient)


fixed_point.defvjp(_fixed_point_forward, _fixed_point_backward)


def unrolled(f: Function, z: Array, times: int) -> Array:
    """f applied ``times`` times to ``z`` (B, D), plainly differentiable; the memory grows with ``times``."""
    return lax.scan(lambda z, _: (f(z), None), z, length=times)[0]


def jacobian_penalty(f: Function, z: Array, key: PRNGKey, probes: int) -> Array:
    """Estimate of ||df/dz||_F^2 / (B * D) from random probes (Hutchinson; Bai et al., ICML 2021, eq. 4).

    Solvers find fixed points with small Jacobians more easily. The gradient flows through f only: ``z`` (B,
    D) is a constant.
    """
    _, pull = jax.vjp(f, lax.stop_gradient(z))

    def of_probe(key: PRNGKey) -> Array:
        return jnp.mean(pull(jax.random.normal(key, z.shape, z.dtype))[0] ** 2)

    return jax.vmap(of_probe)(jax.random.split(key, probes)).mean()
