"""One training step as a pure function: an optimizer update, or one for each of a system's turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dynpix_jax.core.rng import streams
from dynpix_jax.core.typing import Array
from dynpix_jax.training.optim import Flat, StageOptimizer, merge
from dynpix_jax.training.state import TrainState

STREAMS = ("dropout", "gumbel", "points")
"""Random streams a loss may draw from; "params" is drawn at initialisation, "augment" by the loader."""

StepFn = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


def make_step(
    system: Any, optimizer: StageOptimizer, *, seed: int, stage_start: int, stage_steps: int
) -> StepFn:
    """The update of one stage.

    A system with `turns` gets an update for each of them, in their order, within the one step: a forward
    pass, a loss and an update of what that turn uses, after the updates of the turns before it. A turn
    whose labels the batch lacks is skipped: nothing changes, momentum and norms included.

    Args:
        system: a `System`; its `loss` and `controls` are called.
        optimizer: of the stage.
        seed: of the run; streams are folded from it by name and global step.
        stage_start: global step at which the stage begins.
        stage_steps: steps of the stage.

    Returns:
        step(state, batch) -> (state, metrics). Metrics are scalars: the loss's terms, `grad_norm` (before
        clipping), `learning_rate` and `loss`. Of several turns: the terms of all (0 where skipped), the
        greatest norm, the sum of the losses, and `TURN/labelled`, 1 or 0.
    """

    def update(
        state: TrainState,
        batch: Mapping[str, Array],
        used: Collection[str],
        controls: Mapping[str, Array],
        rngs: Mapping[str, Array],
        **turn: str,
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of the trained leaves ``used``; the step is not counted."""
        trainable, frozen = optimizer.split(state.params)
        frozen |= {path: trainable.pop(path) for path in list(trainable) if path not in used}

        def loss_fn(trainable: Flat) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
            variables = {"params": merge(trainable, frozen), **state.collections}
            loss, aux = system.loss(variables, batch, rngs=rngs, controls=controls, **turn)
            return loss, (dict(aux.terms), dict(aux.updates))

        (loss, (terms, collections)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        step = {"step": state.step - stage_start} if turn else {}
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, trainable, **step)
        trainable = optax.apply_updates(trainable, updates)
        new = state.replace(  # type: ignore[attr-defined]
            params=merge(trainable, frozen),
            collections={**state.collections, **collections},
            opt_state=opt_state,
        )
        return new, {**terms, "grad_norm": optax.tree.norm(grads), "loss": loss}

    def take_turns(
        state: TrainState,
        batch: Mapping[str, Array],
        controls: Mapping[str, Array],
        rngs: Mapping[str, Array],
    ) -> tuple[TrainState, dict[str, Array]]:
        """Turn by turn, each from what the one before has left; those without labels change nothing."""
        metrics: dict[str, Array] = {}
        norms, losses = [], []
        for index, (turn, used) in enumerate(optimizer.turns.items()):
            keys = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}

            def take(state: TrainState, turn: str = turn, used: Any = used, keys: Any = keys) -> Any:
                return update(state, batch, used, controls, keys, turn=turn)

            def skip(state: TrainState, take: Any = take) -> Any:
                shapes = jax.eval_shape(take, state)[1]
                return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

            labelled = system.labelled(batch, turn)
            state, measured = jax.lax.cond(labelled, take, skip, state)
            norms.append(measured.pop("grad_norm"))
            losses.append(measured.pop("loss"))
            metrics |= measured | {f"{turn}/labelled": labelled.astype(jnp.float32)}
        return state, {**metrics, "grad_norm": jnp.stack(norms).max(), "loss": sum(losses[1:], losses[0])}

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        stage_step = state.step - stage_start
        controls = system.controls(stage_step, stage_steps)
        rngs = streams(seed, STREAMS, state.step)
        if optimizer.turns:
            new, metrics = take_turns(state, batch, controls, rngs)
        else:
            new, metrics = update(state, batch, optimizer.trainable, controls, rngs)
        new = new.replace(step=state.step + 1)  # type: ignore[attr-defined]
        return new, {**metrics, "learning_rate": optimizer.schedule(stage_step)}

    return step
