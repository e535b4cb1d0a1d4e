"""Rules over parameter paths, against updates worked out by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import unread
from dynpix_jax.core.settings import StageConfig, TrainingConfig
from dynpix_jax.training.optim import merge, poly_schedule, stage_optimizer
from tests.training.toy import ToyConfig

PARAMS = {
    "stem": {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([0.5])},
    "head": {"kernel": jnp.asarray([3.0, 4.0]), "bias": jnp.asarray([-1.0])},
}
GRADS = {"head/kernel": np.array([0.1, -0.2]), "head/bias": np.array([0.3])}


MODEL = ToyConfig("toy")


def settings(stage: dict[str, Any] | None = None, **training: Any) -> tuple[TrainingConfig, StageConfig]:
    defaults: dict[str, Any] = {"name": "s", "steps": 10, "learning_rate": 0.1, "model": MODEL}
    one = StageConfig(**{**defaults, **(stage or {})})
    return TrainingConfig(
        batch_size=1, stages=(one,), **{"optimizer": "sgd", "weight_decay": 0.0, **training}
    ), one


def test_sgd_by_hand() -> None:
    rules = {"frozen": ("stem/.*",), "multipliers": ((".*bias", 2.0), (".*", 0.5))}
    config, stage = settings(rules, momentum=0.9, weight_decay=0.01, poly_power=1.0)
    optimizer = stage_optimizer(PARAMS, config, stage)
    trainable, frozen = optimizer.split(PARAMS)
    assert set(trainable) == {"head/kernel", "head/bias"}
    state = optimizer.tx.init(trainable)
    # No state for what is frozen: momentum of three numbers and the schedule's count.
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 3 + 1

    kernel, bias = np.array([3.0, 4.0]), np.array([-1.0])
    kernel_momentum, bias_momentum = np.zeros(2), np.zeros(1)
    for step in range(3):
        grads = {name: jnp.asarray(value, jnp.float32) for name, value in GRADS.items()}
        updates, state = optimizer.tx.update(grads, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        rate = 0.1 * (1 - step / 10)
        kernel_momentum = 0.9 * kernel_momentum + GRADS["head/kernel"] + 0.01 * kernel
        bias_momentum = 0.9 * bias_momentum + GRADS["head/bias"]  # no decay: weight_decay_on is ".*kernel"
        kernel = kernel - rate * 0.5 * kernel_momentum
        bias = bias - rate * 2.0 * bias_momentum
        np.testing.assert_allclose(trainable["head/kernel"], kernel, rtol=1e-6)
        np.testing.assert_allclose(trainable["head/bias"], bias, rtol=1e-6)
    together = merge(trainable, frozen)
    assert jax.tree.structure(together) == jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(together["stem"]["kernel"], PARAMS["stem"]["kernel"])


def test_adamw_by_hand() -> None:
    config, stage = settings({"frozen": ("stem/.*",)}, optimizer="adamw", weight_decay=0.1, poly_power=0.0)
    optimizer = stage_optimizer(PARAMS, config, stage)
    trainable = optimizer.pick(PARAMS)
    grads = {name: jnp.asarray(value, jnp.float32) for name, value in GRADS.items()}
    updates, _ = optimizer.tx.update(grads, optimizer.tx.init(trainable), trainable)
    # Adam's first step is the gradient's sign; decay is apart from it.
    np.testing.assert_allclose(updates["head/kernel"], [-0.1 * (1 + 0.3), -0.1 * (-1 + 0.4)], rtol=1e-4)
    np.testing.assert_allclose(updates["head/bias"], [-0.1], rtol=1e-5)


def test_gradients_are_clipped_before_decay() -> None:
    config, stage = settings(
        {"frozen": ("stem/.*",)}, momentum=0.0, weight_decay=0.1, grad_clip=0.1, poly_power=0.0
    )
    optimizer = stage_optimizer(PARAMS, config, stage)
    trainable = optimizer.pick(PARAMS)
    grads = {name: jnp.asarray(value, jnp.float32) for name, value in GRADS.items()}
    updates, _ = optimizer.tx.update(grads, optimizer.tx.init(trainable), trainable)
    clip = 0.1 / np.sqrt(0.01 + 0.04 + 0.09)
    expected = -0.1 * (clip * GRADS["head/kernel"] + 0.1 * np.array([3.0, 4.0]))
    np.testing.assert_allclose(updates["head/kernel"], expected, rtol=1e-5)


def test_schedule() -> None:
    schedule = poly_schedule(0.4, 100, 0.9, 4)
    values = [float(schedule(step)) for step in (0, 3, 4, 50, 99)]
    expected = [0.08, 0.4 * 0.8 * 0.97**0.9, 0.4 * 0.96**0.9, 0.4 * 0.5**0.9, 0.4 * 0.01**0.9]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_cosine_goes_on_from_stage_to_stage() -> None:
    """MDEQ's release: rates of a run of 3 + 5 steps are those of torch's CosineAnnealingLR over 8."""
    stages = (StageConfig("one", 3, 0.1, MODEL), StageConfig("two", 5, 0.1, MODEL))
    config = TrainingConfig(1, stages, optimizer="sgd", weight_decay=0.0, schedule="cosine")
    rates = []
    for stage in stages:
        schedule = stage_optimizer(PARAMS, config, stage).schedule
        rates += [float(schedule(jnp.asarray(step))) for step in range(stage.steps)]
    expected = [0.05 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    linear = TrainingConfig(1, stages, schedule="cosine", poly_power=1.0)
    assert [path for path, _, _ in unread(linear)] == ["poly_power"]


@pytest.mark.parametrize(
    ("stage", "training", "message"),
    [
        ({"multipliers": (("head/.*", 1.0),)}, {}, r"stages\[s\]: 2 of 4 .*stem/bias, stem/kernel"),
        (
            {"frozen": ("stem/.*", "steam/.*")},
            {},
            r"stages\[s\]\.frozen: no parameter is matched by 'steam/\.\*'; ",
        ),
        (
            {"multipliers": (("gate.*", 2.0), (".*", 1.0))},
            {},
            r"multipliers: no parameter is matched by 'gate\.\*'",
        ),
        ({}, {"weight_decay": 0.1, "weight_decay_on": ("kernel",)}, "weight_decay_on: no parameter"),
        ({"frozen": (".*",)}, {}, "all 4 parameters are frozen"),
    ],
)
def test_rules_must_fit(stage: dict[str, Any], training: dict[str, Any], message: str) -> None:
    config, one = settings(stage, **training)
    with pytest.raises(UserError, match=message):
        stage_optimizer(PARAMS, config, one)
