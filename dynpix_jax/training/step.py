"""One optimizer update as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from dynpix_jax.training.optim import Flat, StageOptimizer, merge
from dynpix_jax.training.state import TrainState
from dynpix_jax.typing import Array
from dynpix_jax.utils.rng import streams

STREAMS = ("dropout", "gumbel", "points")
"""Random streams a loss may draw from; "params" is drawn at initialisation, "augment" by the loader."""

StepFn = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


def make_step(
    system: Any, optimizer: StageOptimizer, *, seed: int, stage_start: int, stage_steps: int
) -> StepFn:
    """The update of one stage.

    Args:
        system: a `models.System`; its `loss` and `controls` are called.
        optimizer: of the stage.
        seed: of the run; streams are folded from it by name and global step.
        stage_start: global step at which the stage begins.
        stage_steps: steps of the stage.

    Returns:
        step(state, batch) -> (state, metrics). Metrics are scalars: the loss's terms, `grad_norm` (before
        clipping), `learning_rate` and `loss`.
    """

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        stage_step = state.step - stage_start
        controls = system.controls(stage_step, stage_steps)
        rngs = streams(seed, STREAMS, state.step)
        trainable, frozen = optimizer.split(state.params)

        def loss_fn(trainable: Flat) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
            variables = {"params": merge(trainable, frozen), **state.collections}
            loss, aux = system.loss(variables, batch, rngs=rngs, controls=controls)
            return loss, (dict(aux.terms), dict(aux.updates))

        (loss, (terms, collections)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        new = TrainState(
            step=state.step + 1,
            params=merge(trainable, frozen),
            collections={**state.collections, **collections},
            opt_state=opt_state,
        )
        return new, {
            **terms,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": optimizer.schedule(stage_step),
            "loss": loss,
        }

    return step
