"""Several turns at a batch: each updates its own, in order; skipped ones change nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynpix_jax.core.settings import MeshConfig, StageConfig, TrainingConfig
from dynpix_jax.run_config import read_run
from dynpix_jax.training.optim import stage_optimizer
from dynpix_jax.training.sharding import make_mesh
from dynpix_jax.training.stages import make_stage
from dynpix_jax.training.state import new_state
from dynpix_jax.training.step import STREAMS, make_step
from tests.training import toy, turns


def settings(**changes: Any) -> tuple[TrainingConfig, StageConfig]:
    stage = StageConfig("s", 10, 0.1, toy.ToyConfig("toy"))
    return TrainingConfig(
        batch_size=8, stages=(stage,), **{"optimizer": "sgd", "weight_decay": 0.0, **changes}
    ), stage


def test_a_step_is_an_update_a_turn_by_hand() -> None:
    """SGD with momentum and decay, worked out turn by turn with the plain rules."""
    system = turns.TurnsSystem(turns.TurnsConfig("turns"))
    batch = {name: jnp.asarray(value) for name, value in next(turns.batches(8).start()).items()}
    variables = dict(system.init(jax.random.key(0), batch))
    config, stage = settings(weight_decay=0.1, weight_decay_on=(".*",), poly_power=1.0)
    optimizer = stage_optimizer(variables["params"], config, stage, system)
    step = jax.jit(make_step(system, optimizer, seed=0, stage_start=0, stage_steps=10))
    state = new_state(variables, optimizer.tx, optimizer.pick, 0)

    @partial(jax.jit, static_argnames="turn")
    def by_hand(params: Any, stats: Any, turn: str) -> Any:
        def loss(params: Any) -> Any:
            return system.turn_loss({"params": params, **stats}, batch, turn, rngs={}, controls={})

        return jax.value_and_grad(loss, has_aux=True)(params)

    flat, momentum = optimizer.pick(variables["params"]), {}
    stats = {"batch_stats": variables["batch_stats"]}
    for number in range(2):
        state, metrics = step(state, batch)
        for turn in turns.TURNS:
            nested = {}
            for path, leaf in flat.items():
                module, name = path.split("/")
                nested.setdefault(module, {})[name] = leaf
            (value, aux), grads = by_hand(nested, stats, turn)
            stats = dict(aux.updates)
            np.testing.assert_allclose(metrics[turn], value, rtol=1e-5)
            for path in flat:
                module, name = path.split("/")
                if "_" in module and not module.endswith(turn):
                    continue
                momentum[path] = 0.9 * momentum.get(path, 0) + grads[module][name] + 0.1 * flat[path]
                flat[path] = flat[path] - 0.1 * (1 - number / 10) * momentum[path]
    for path, leaf in optimizer.pick(state.params).items():
        np.testing.assert_allclose(leaf, flat[path], rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.collections, stats
    )
    assert int(state.step) == 2


def test_operations_of_a_step_are_those_of_all_turns() -> None:
    """Only the batch tells which are skipped: `mfu` and `dynpix plan` take the whole."""
    stages = ({"name": "turns", "steps": 6, "learning_rate": 0.05},)
    config = toy.config(batch_size=8, stages=stages)
    config["model"] = {"system": "tests.training.turns:TurnsSystem"}
    stage = make_stage(read_run(config), 0, make_mesh(MeshConfig(), 8), (*toy.SIZE, 3))
    batch = {name: jnp.asarray(value) for name, value in next(turns.batches(8).start()).items()}
    pixels = 8 * toy.SIZE[0] * toy.SIZE[1]
    # A turn's stem has 3x3 taps, 3 to 4 channels, and no gradient of the images; its head 4 to 1 channel.
    forward = {"stem": pixels * 9 * 3 * 4, "head": pixels * 4}
    assert stage.flops(batch) == 2 * len(turns.TURNS) * (2 * forward["stem"] + 3 * forward["head"])


def test_adam_counts_the_updates_of_each_leaf() -> None:
    """A leaf that two turns share is updated twice a step, and its bias correction knows it."""
    params = {"stem": {"kernel": jnp.ones(2)}, "head_dark": {"kernel": jnp.ones(1)}}
    config, stage = settings(optimizer="adamw", poly_power=0.0)
    optimizer = stage_optimizer(params, config, stage, turns.TurnsSystem(turns.TurnsConfig("turns")))
    assert optimizer.turns["bright"] == {"stem/kernel"}
    plain = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(0.1))
    leaves = optimizer.pick(params)
    state, expected = optimizer.tx.init(leaves), plain.init(leaves["stem/kernel"])
    for gradient in (0.3, -2.0, 0.5):
        grads = {"stem/kernel": jnp.full(2, gradient)}
        updates, state = optimizer.tx.update(grads, state, leaves, step=jnp.asarray(0))
        same, expected = plain.update(grads["stem/kernel"], expected)
        np.testing.assert_allclose(updates["stem/kernel"], same, rtol=1e-6)
    counts = [int(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim == 0]
    assert sorted(counts) == [0, 3]


class NoisyTurns(turns.TurnsSystem):
    """Each turn reports what it draws."""

    def turn_loss(self, variables: Any, batch: Any, turn: str, *, rngs: Any, controls: Any) -> Any:
        loss, aux = super().turn_loss(variables, batch, turn, rngs=rngs, controls=controls)
        drawn = {f"{turn}/{name}": jax.random.uniform(key) for name, key in rngs.items()}
        return loss, toy.ToyAux(aux.terms | drawn, aux.updates)


def test_each_turn_of_each_step_draws_its_own_noise() -> None:
    """Whatever the stream; the same step draws the same again."""
    system = NoisyTurns(turns.TurnsConfig("turns"))
    batch = {name: jnp.asarray(value) for name, value in next(turns.batches(8).start()).items()}
    variables = dict(system.init(jax.random.key(0), batch))
    config, stage = settings()
    optimizer = stage_optimizer(variables["params"], config, stage, system)
    step = jax.jit(make_step(system, optimizer, seed=0, stage_start=0, stage_steps=10))
    first, metrics = step(new_state(variables, optimizer.tx, optimizer.pick, 0), batch)
    again = step(new_state(variables, optimizer.tx, optimizer.pick, 0), batch)[1]
    following = step(first, batch)[1]
    names = [f"{turn}/{stream}" for turn in turns.TURNS for stream in STREAMS]
    drawn = [float(found[name]) for found in (metrics, following) for name in names]
    assert len(names) == 6
    assert len(set(drawn)) == len(drawn)
    assert [float(again[name]) for name in names] == drawn[:6]
