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
from dynpix_jax.nn.remat import rematerialized
from dynpix_jax.training.optim import Flat, StageOptimizer, merge
from dynpix_jax.training.state import TrainState

STREAMS = ("dropout", "gumbel", "points")
"""Random streams a loss may draw from; "params" is drawn at initialisation, "augment" by the loader."""

Batch = Mapping[str, Array]
Scalars = Mapping[str, Array]
Rngs = Mapping[str, PRNGKey]
LossFn = Callable[[Batch, Rngs, Variables], tuple[Array, LossAux]]
Collections = dict[str, Any]
Gradient = tuple[dict[str, Array], Flat, Collections]
"""Metrics, gradient, and the collections afterwards."""
StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_step(
    system: System,
    optimizer: StageOptimizer,
    *,
    seed: int,
    stage_start: int,
    stage_steps: int,
    microbatches: int = 1,
    remat: str = "none",
    used_at: jax.sharding.Sharding | None = None,
) -> StepFn:
    """The update of one stage.

    A system that `TakesTurns` gets one update a turn within one step, each on the variables that the turn
    before has left: a forward pass, a loss and an update of the leaves that the turn uses. A turn whose
    labels the batch lacks is skipped: nothing changes, momentum and norms included.

    Parameters are brought to ``used_at`` where the loss reads them; None leaves them where they are.

    Returns:
        step(state, batch) -> (state, metrics). Metrics are scalars: the loss's terms, `grad_norm` (before
        clipping), `learning_rate` and `loss`. With several turns: the terms of all (0 where skipped), the
        greatest norm, the sum of the losses, and `TURN/labelled`, 1 or 0.
    """

    def update(
        state: TrainState, used: Collection[str], loss_of: LossFn, batch: Batch, rngs: Rngs, **tx_args: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of the trained leaves ``used`` by the gradient of a loss; the step is not counted."""
        trainable, frozen = optimizer.split(state.params)
        frozen |= {path: trainable.pop(path) for path in list(trainable) if path not in used}

        def gradient(collections: Collections, batch: Batch, rngs: Rngs) -> Gradient:
            def loss_fn(trainable: Flat) -> tuple[Array, LossAux]:
                params = merge(trainable, frozen)
                if used_at is not None:
                    # Else the compiler may split the images' channels as it finds the kernels split.
                    params = jax.lax.with_sharding_constraint(params, used_at)
                return loss_of(batch, rngs, {"params": params, **collections})

            with rematerialized(remat):
                (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
            return {**aux.terms, "loss": loss}, grads, {**collections, **aux.updates}

        metrics, grads, collections = _over_parts(
            gradient, microbatches, trainable, state.collections, batch, rngs
        )
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, trainable, **tx_args)
        new = dataclasses.replace(
            state,
            params=merge(optax.apply_updates(trainable, updates), frozen),
            collections=collections,
            opt_state=opt_state,
        )
        return new, {**metrics, "grad_norm": optax.tree.norm(grads)}

    def take_turns(
        system: TakesTurns, state: TrainState, batch: Batch, controls: Scalars, rngs: Rngs
    ) -> tuple[TrainState, dict[str, Array]]:
        """Takes the turns one after the other; turns without labels change nothing."""
        metrics: dict[str, Array] = {}
        norms, losses = [], []
        stage_step = state.step - stage_start
        for index, (turn, used) in enumerate(optimizer.turns.items()):
            keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
            loss_of = partial(_turn_loss, system, turn, controls)
            take = partial(update, used=used, loss_of=loss_of, batch=batch, rngs=keys, step=stage_step)

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
            new, metrics = update(state, optimizer.trainable, partial(_loss, system, controls), batch, rngs)
        new = dataclasses.replace(new, step=state.step + 1)
        return new, {**metrics, "learning_rate": optimizer.schedule(stage_step)}

    return step


def _over_parts(
    gradient: Callable[[Collections, Batch, Rngs], Gradient],
    count: int,
    trainable: Flat,
    collections: Collections,
    batch: Batch,
    rngs: Rngs,
) -> Gradient:
    """The mean gradient and metrics of ``count`` parts of a batch, and what the last one leaves."""
    if count == 1:
        return gradient(collections, batch, rngs)
    # Every part has images of every device: none has to move.
    parts = {name: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0) for name, x in batch.items()}

    def add(carry: tuple[Flat, Collections], part: Any) -> tuple[tuple[Flat, Collections], Any]:
        total, collections = carry
        index, batch = part
        keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
        metrics, grads, collections = gradient(collections, batch, keys)
        return (jax.tree.map(jnp.add, total, grads), collections), metrics

    start = (jax.tree.map(jnp.zeros_like, trainable), collections)
    (total, collections), metrics = jax.lax.scan(add, start, (jnp.arange(count), parts))
    mean = {name: jnp.mean(value, 0) for name, value in metrics.items()}
    return mean, jax.tree.map(lambda leaf: leaf / count, total), collections


def _loss(
    system: System, controls: Scalars, batch: Batch, rngs: Rngs, variables: Variables
) -> tuple[Array, LossAux]:
    return system.loss(variables, batch, rngs=rngs, controls=controls)


def _turn_loss(
    system: TakesTurns, turn: str, controls: Scalars, batch: Batch, rngs: Rngs, variables: Variables
) -> tuple[Array, LossAux]:
    return system.turn_loss(variables, batch, turn, rngs=rngs, controls=controls)
