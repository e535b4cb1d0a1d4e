"""The optimizer of a stage, from rules over parameter paths.

Neither the optimizer nor differentiation sees frozen leaves: `split` separates the params into two flat dicts
by path, the loss is differentiated with respect to the trainable one, and `merge` joins them. XLA then
computes no weight gradient for frozen layers, and none at all below the first trainable one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import optax

from dynpix_jax.core.capabilities import TakesTurns
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import StageConfig, TrainingConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.trees import match_first, named_leaves
from dynpix_jax.core.typing import Array, Params

Flat = dict[str, Array]
"""Leaves by path "a/b/c"."""


@dataclasses.dataclass(frozen=True)
class StageOptimizer:
    """Optimizer of one stage.

    Attributes:
        tx: Optax transformation over the flat dict of trainable leaves.
        trainable: Paths of the trained leaves.
        schedule: Learning rate as a function of the step within the stage.
        turns: Turn -> the trained leaves that it uses, for a system that takes several turns at a batch.
            `tx.update` then takes the leaves of one turn, and the `step` within the stage. Empty: one turn.
    """

    tx: optax.GradientTransformation
    trainable: frozenset[str]
    schedule: optax.Schedule
    turns: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    def split(self, params: Params) -> tuple[Flat, Flat]:
        """(trainable, frozen) leaves of `params` as flat dicts."""
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return (
            {path: leaf for path, leaf in flat.items() if path in self.trainable},
            {path: leaf for path, leaf in flat.items() if path not in self.trainable},
        )

    def pick(self, params: Params) -> Flat:
        """The trainable leaves of `params`."""
        return self.split(params)[0]


def merge(*parts: Flat) -> Params:
    """The nested params of several flat dicts."""
    leaves = {path: leaf for part in parts for path, leaf in part.items()}
    nested: Params = flax.traverse_util.unflatten_dict(leaves, sep="/")
    return nested


def poly_schedule(learning_rate: float, steps: int, power: float, warmup_steps: int) -> optax.Schedule:
    """lr(t) = learning_rate * min(1, (t + 1) / (warmup_steps + 1)) * (1 - t / steps) ** power, t < steps."""

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1.0) / (warmup_steps + 1.0))
        return learning_rate * warm * jnp.maximum(0.0, 1.0 - step / steps) ** power

    return schedule


def cosine_schedule(learning_rate: float, start: int, total: int, warmup_steps: int) -> optax.Schedule:
    """lr(t) = learning_rate * min(1, (t + 1) / (warmup_steps + 1)) * (1 + cos(pi (start + t) / total)) / 2.

    Args:
        start: Steps of the run before the stage.
        total: Steps of the whole run.
    """

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1.0) / (warmup_steps + 1.0))
        return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * (start + step) / total))

    return schedule


def stage_optimizer(
    params: Any, config: TrainingConfig, stage: StageConfig, system: System | None = None
) -> StageOptimizer:
    """Build the optimizer of a stage for `params` (arrays or shapes).

    SGD is that of Caffe and torch: decay is added to the (clipped) gradient, momentum accumulates the sum,
    the learning rate and the leaf's multiplier scale the result.

    Args:
        system: One that `TakesTurns`; None or another: one turn. A turn updates the leaves that it uses, each
            with its own momentum; the others are left as they are, without decay.

    Raises:
        UserError: A parameter that neither `frozen` nor `multipliers` matches, a rule that matches no
            parameter, or nothing left to train.
    """
    multipliers = _multipliers([name for name, _ in named_leaves(params)], config, stage)
    trainable = frozenset(multipliers)
    schedule = _schedule(config, stage)
    clip = [optax.clip_by_global_norm(config.grad_clip)] if config.grad_clip else []
    scale = optax.stateless(
        lambda updates, _: {name: multipliers[name] * leaf for name, leaf in updates.items()}
    )
    rule = optax.chain(*_rule(config), scale)
    if system is None or not isinstance(system, TakesTurns):
        tx = optax.chain(*clip, rule, optax.scale_by_learning_rate(schedule))
        return StageOptimizer(tx, trainable, schedule)
    users = {name: tuple(turn for turn in system.turns if system.uses(turn, name)) for name in multipliers}
    tx = optax.chain(*clip, _by_users(rule, users), _scale_by_step(schedule))
    turns = {turn: frozenset(name for name, of in users.items() if turn in of) for turn in system.turns}
    return StageOptimizer(tx, trainable, schedule, turns)


def _schedule(config: TrainingConfig, stage: StageConfig) -> optax.Schedule:
    if config.schedule == "poly":
        return poly_schedule(stage.learning_rate, stage.steps, config.poly_power, config.warmup_steps)
    start = config.stage_start([one.name for one in config.stages].index(stage.name))
    return cosine_schedule(stage.learning_rate, start, config.total_steps, config.warmup_steps)


def _multipliers(names: Sequence[str], config: TrainingConfig, stage: StageConfig) -> dict[str, float]:
    """Learning-rate multiplier of each trained leaf among ``names``."""
    path = f"config.training.stages[{stage.name}]"
    _check_used(f"{path}.frozen", stage.frozen, names)
    _check_used(f"{path}.multipliers", [pattern for pattern, _ in stage.multipliers], names)
    if config.weight_decay:
        _check_used("config.training.weight_decay_on", config.weight_decay_on, names)
    trainable = [name for name in names if not _matches(stage.frozen, name)]
    if not trainable:
        raise UserError(f"{path}.frozen: all {len(names)} parameters are frozen; nothing is left to train")
    multipliers = {name: match_first(stage.multipliers, name, default=None) for name in trainable}
    uncovered = [name for name, factor in multipliers.items() if factor is None]
    if uncovered:
        raise UserError(
            f"{path}: {len(uncovered)} of {len(names)} parameters are matched by no rule of frozen or"
            f" multipliers: {', '.join(uncovered)}"
        )
    return multipliers


def _rule(config: TrainingConfig) -> list[optax.GradientTransformation]:
    """The update rule before scaling by the learning rate."""

    def decays(leaves: Flat) -> dict[str, bool]:
        # A function, because an update may cover only some of the leaves.
        return {name: _matches(config.weight_decay_on, name) for name in leaves}

    decay = [optax.add_decayed_weights(config.weight_decay, mask=decays)] if config.weight_decay else []
    if config.optimizer == "adamw":
        return [optax.scale_by_adam(), *decay]
    return [*decay, *([optax.trace(config.momentum)] if config.momentum else [])]


def _by_users(
    tx: optax.GradientTransformation, users: Mapping[str, Sequence[str]]
) -> optax.GradientTransformation:
    """`tx` with a separate state for the leaves of each set of turns.

    An update of the leaves of some sets does not touch the state of the others, Adam's counters included.
    """

    def split(leaves: Flat) -> dict[str, Flat]:
        parts: dict[str, Flat] = {}
        for name, leaf in leaves.items():
            parts.setdefault("+".join(users[name]) or "none", {})[name] = leaf
        return parts

    def init(params: Any) -> Any:
        return {part: tx.init(leaves) for part, leaves in split(params).items()}

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates: Flat = {}
        state = dict(state)
        for part, leaves in split(grads).items():
            some, state[part] = tx.update(leaves, state[part], {name: params[name] for name in leaves})
            updates |= dict(some)
        return updates, state

    return optax.GradientTransformation(init, update)


def _scale_by_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Scales by minus the learning rate at a given `step`; counting updates would count turns."""

    def update(updates: Any, state: Any, params: Any = None, *, step: Array, **_: Any) -> tuple[Any, Any]:
        rate = schedule(step)
        return {name: -rate * leaf for name, leaf in updates.items()}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _check_used(path: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    unused = [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in names)]
    if unused:
        listing = ", ".join(f"'{pattern}'" for pattern in unused)
        raise UserError(f"{path}: no parameter is matched by {listing}; parameters: {_shorten(names)}")


def _shorten(names: Sequence[str], most: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
