"""Bad values of the training section, overrides, and configs as JSON."""

from __future__ import annotations

import json
from typing import Any

import ml_collections
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.overrides import apply_overrides
from dynpix_jax.training.settings import stage_model, stage_system, training_config
from dynpix_jax.training.snapshots import config_from_json, config_to_json, differences
from tests.training import toy


def stages(**changes: Any) -> dict[str, Any]:
    return {"stages": ({"name": "one", "steps": 2, "learning_rate": 0.1, **changes},)}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"batch_size": 0}, r"config\.training\.batch_size: expected at least 1, got 0"),
        (
            {"optimizer": "sdg"},
            r"config\.training\.optimizer: expected one of 'sgd', 'adamw'.*did you mean 'sgd'",
        ),
        ({"momentum": 1.0}, r"config\.training\.momentum: expected a number in \[0, 1\)"),
        ({"optimiser": "sgd"}, r"config\.training\.optimiser: unknown key; did you mean 'optimizer'"),
        ({"stages": ()}, r"config\.training\.stages: expected at least one stage"),
        (stages(steps=-1), r"config\.training\.stages\[0\]\.steps: expected at least 1, got -1"),
        (stages(learning_rate="high"), r"config\.training\.stages\[0\]\.learning_rate: expected float"),
        (
            stages(frozen=("res[",)),
            r"config\.training\.stages\[0\]\.frozen: 'res\[' is not a regular expression",
        ),
        (
            stages(multipliers=((".*", 0.0),)),
            r"stages\[0\]\.multipliers: expected a positive factor for '\.\*'",
        ),
        ({"mesh": {"data": 0}}, r"config\.training\.mesh\.data: expected -1 \(all devices\)"),
    ],
)
def test_bad_values(training: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_config(toy.config(**training))


def test_missing_section() -> None:
    config = toy.config().unlock()
    del config.training
    with pytest.raises(UserError, match=r"config\.training: missing"):
        training_config(config)


def test_stage_model() -> None:
    config = toy.config()
    assert stage_model(config, 1).deep is True
    assert config.model.deep is False
    bad = toy.config(**stages(model={"deeep": True}))
    with pytest.raises(
        UserError, match=r"stages\[one\]\.model\.deeep: not a key of config\.model; did you mean 'deep'"
    ):
        stage_model(bad, 0)


def test_a_stage_that_cannot_be_built_is_named() -> None:
    config = toy.config()

    def refuse(section: Any) -> None:
        raise UserError("config.model.scale: 1.0; expected less")

    with pytest.raises(UserError, match=r"^stage 'deep': config\.model\.scale: 1\.0"):
        stage_system(config, training_config(config).stages[1], refuse)


def test_overrides() -> None:
    config = toy.config()
    changed = apply_overrides(
        config,
        [
            "training.batch_size=8",
            "model.scale=2",
            "model.deep=true",
            "training.stages[1].frozen=('a', 'b')",
            "name=x=y",
        ],
    )
    assert (changed.training.batch_size, changed.model.scale, changed.model.deep) == (8, 2.0, True)
    assert changed.training.stages[1].frozen == ("a", "b")
    assert changed.name == "x=y"
    assert config.training.batch_size == 4
    assert training_config(changed).stages[1].frozen == ("a", "b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.batchsize=8",
            r"--set training\.batchsize: config\.training\.batchsize is not a key; .*'batch_size'",
        ),
        ("training.batch_size=many", r"config\.training\.batch_size: expected int, got 'many'"),
        ("training.batch_size=2.5", "expected int"),
        ("training.batch_size=True", "expected int"),
        ("model.deep=3", "expected bool"),
        ("training.stages[2].steps=1", r"config\.training\.stages has no element \[2\]"),
        ("training=3", "is a section"),
        ("training.batch_size", "expected key=value"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_overrides(toy.config(), [override])


def test_json_and_differences() -> None:
    config = toy.config()
    snapshot = json.loads(json.dumps(config_to_json(config)))
    again = config_from_json(snapshot)
    assert config_to_json(again) == snapshot
    assert training_config(again) == training_config(config)
    other = ml_collections.ConfigDict(config)
    other.training.log_every = 99  # harmless
    assert differences(snapshot, config_to_json(other)) == []
    other = apply_overrides(other, ["training.stages[1].steps=9", "seed=1"])
    assert differences(snapshot, config_to_json(other)) == [
        "config.seed is 0 there and 1 here",
        "config.training.stages[1].steps is 5 there and 9 here",
    ]
