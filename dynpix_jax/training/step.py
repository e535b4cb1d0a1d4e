"""One training step as a pure function: an optimizer update, or one for each of a system's turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dynpix_jax.core.capabilities import TakesTurns
from dynpix_jax.core.rng import streams
from dynpix_jax.core.system import LossAux, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.training.optim import Flat, StageOptimizer, merge
from dynpix_jax.training.state import TrainState

STREAMS = ("dropout", "gumbel", "points")
"""Random streams a loss may draw from; "params" is drawn at initialisation, "augment" by the loader."""

Batch = Mapping[str, Array]
Scalars = Mapping[str, Array]
LossFn = Callable[[Variables], tuple[Array, LossAux]]
StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_step(
    system: System, optimizer: StageOptimizer, *, seed: int, stage_start: int, stage_steps: int
) -> StepFn:
    """The update of one stage.

    A system that `TakesTurns` gets one update a turn within one step, each on the variables that the turn
    before has left: a forward pass, a loss and an update of the leaves that the turn uses. A turn whose
    labels the batch lacks is skipped: nothing changes, momentum and norms included.

    Args:
        system: Its `loss` (or `turn_loss`) and `controls` are called.
        optimizer: Optimizer of the stage.
        seed: Seed of the run; streams are folded from it by name and global step.
        stage_start: Global step at which the stage begins.
        stage_steps: Steps of the stage.

    Returns:
        step(state, batch) -> (state, metrics). Metrics are scalars: the loss's terms, `grad_norm` (before
        clipping), `learning_rate` and `loss`. With several turns: the terms of all (0 where skipped), the
        greatest norm, the sum of the losses, and `TURN/labelled`, 1 or 0.
    """

    def update(
        state: TrainState, used: Collection[str], loss_of: LossFn, **tx_args: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of the trained leaves ``used`` by the gradient of a loss; the step is not counted."""
        trainable, frozen = optimizer.split(state.params)
        frozen |= {path: trainable.pop(path) for path in list(trainable) if path not in used}

        def loss_fn(trainable: Flat) -> tuple[Array, LossAux]:
            return loss_of({"params": merge(trainable, frozen), **state.collections})

        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, trainable, **tx_args)
        new = dataclasses.replace(
            state,
            params=merge(optax.apply_updates(trainable, updates), frozen),
            collections={**state.collections, **aux.updates},
            opt_state=opt_state,
        )
        return new, {**aux.terms, "grad_norm": optax.tree.norm(grads), "loss": loss}

    def take_turns(
        system: TakesTurns, state: TrainState, batch: Batch, controls: Scalars, rngs: Mapping[str, PRNGKey]
    ) -> tuple[TrainState, dict[str, Array]]:
        """Takes the turns one after the other; turns without labels change nothing."""
        metrics: dict[str, Array] = {}
        norms, losses = [], []
        stage_step = state.step - stage_start
        for index, (turn, used) in enumerate(optimizer.turns.items()):
            keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
            loss_of = partial(_turn_loss, system, batch, turn, controls, keys)

            def take(
                state: TrainState, used: Collection[str] = used, loss_of: LossFn = loss_of
            ) -> tuple[TrainState, dict[str, Array]]:
                return update(state, used, loss_of, step=stage_step)

            def skip(state: TrainState, take: Any = take) -> tuple[TrainState, dict[str, Array]]:
                shapes = jax.eval_shape(take, state)[1]
                return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

            labelled = system.labelled(batch, turn)
            state, measured = jax.lax.cond(labelled, take, skip, state)
            norms.append(measured.pop("grad_norm"))
            losses.append(measured.pop("loss"))
            metrics |= measured | {f"{turn}/labelled": labelled.astype(jnp.float32)}
        return state, {**metrics, "grad_norm": jnp.stack(norms).max(), "loss": sum(losses[1:], losses[0])}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        stage_step = state.step - stage_start
        controls = system.controls(stage_step, stage_steps)
        rngs = streams(seed, STREAMS, state.step)
        if isinstance(system, TakesTurns):
            new, metrics = take_turns(system, state, batch, controls, rngs)
        else:
            loss_of = partial(_loss, system, batch, controls, rngs)
            new, metrics = update(state, optimizer.trainable, loss_of)
        new = dataclasses.replace(new, step=state.step + 1)
        return new, {**metrics, "learning_rate": optimizer.schedule(stage_step)}

    return step


def _loss(
    system: System, batch: Batch, controls: Scalars, rngs: Mapping[str, PRNGKey], variables: Variables
) -> tuple[Array, LossAux]:
    return system.loss(variables, batch, rngs=rngs, controls=controls)


def _turn_loss(
    system: TakesTurns,
    batch: Batch,
    turn: str,
    controls: Scalars,
    rngs: Mapping[str, PRNGKey],
    variables: Variables,
) -> tuple[Array, LossAux]:
    return system.turn_loss(variables, batch, turn, rngs=rngs, controls=controls)
