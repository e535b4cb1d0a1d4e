"""Bad values of the training section, changes of stages and from the command line, and what makes a run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dynpix_jax.core.config import differences
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import stage_system
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
        toy.run(**training)


def test_missing_section() -> None:
    config = toy.config()
    for name in ("training", "model", "data"):
        with pytest.raises(UserError, match=rf"config\.{name}: missing"):
            read_run({key: value for key, value in config.items() if key != name})


def test_each_stage_has_its_typed_model() -> None:
    run = toy.run({"scale": 3})
    assert [stage.model.deep for stage in run.stages] == [False, True]
    assert {stage.model.scale for stage in run.stages} == {3.0}
    with pytest.raises(UserError, match=r"stage 'one': config\.model\.deeep: unknown key; did you mean 'd"):
        toy.run(**stages(model={"deeep": True}))
    with pytest.raises(UserError, match=r"^stage 'deep': config\.model\.scale: -1\.0; expected a positive"):
        read_run(toy.config(), ["training.stages[1].model.scale=-1"])


def test_a_stage_that_cannot_be_built_is_named() -> None:
    run = read_run(toy.config(), ["training.stages[1].model.scale=1000"])
    with pytest.raises(UserError, match=r"^stage 'deep': config\.model\.scale: 1000\.0; expected less"):
        stage_system(run.stages[1])


def test_overrides() -> None:
    config = toy.config()
    changes = [
        "training.batch_size=8",
        "model.scale=2",
        "training.stages[1].frozen=('a', 'b')",
        "training.mesh.data=4",
        "execution.implementation=gather",
        "name=3",
    ]
    run = read_run(config, changes)
    assert (run.training.batch_size, run.name, run.training.mesh.data) == (8, "3", 4)
    assert [stage.model.scale for stage in run.stages] == [2.0, 2.0]
    assert run.stages[1].frozen == ("a", "b")
    assert run.execution.implementation == "gather"
    assert config == toy.config()
    # What a checkpoint holds gives the same run, and more can be changed on top of it.
    saved = json.loads(json.dumps(run.given))
    assert read_run(saved) == run
    assert read_run(saved, ["execution.implementation=None"]).execution.implementation is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batchsize=8", r"config\.training\.batchsize: unknown key; did you mean 'batch_size'"),
        ("training.batch_size=many", r"config\.training\.batch_size: expected int, got 'many'"),
        ("training.batch_size=2.5", "expected int"),
        ("training.batch_size=True", "expected int"),
        ("model.poison=word", "expected float"),
        ("training.stages[2].steps=1", r"config\.training\.stages has no element \[2\]"),
        ("training=3", "is a section"),
        ("training.batch_size", "expected key=value"),
        ("name.first=x", "config.name is 'toy', which has no key 'first'"),
        ("execution.implementation=gathr", r"expected one of .* or None, got 'gathr'"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_run(toy.config(), [override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Every stage has its own.
        (
            ["model.deep=True"],
            r"^config\.model\.deep: nothing reads 'True': every stage has its own; "
            r"what has an effect is training\.stages\[0\]\.model\.deep, training\.stages\[1\]\.model\.d",
        ),
        # One has its own, the other does not read it.
        (
            ["training.stages[0].model.poison=1", "model.poison=2"],
            r"^config\.model\.poison: nothing reads '2': .*; what has an effect is training\.stages\[0\]",
        ),
        (
            ["training.stages[1].model.poison=1"],
            r"^config\.training\.stages\[1\]\.model\.poison: nothing reads '1': a shallow network",
        ),
        (
            ["training.optimizer=adamw", "training.momentum=0.5"],
            r"^config\.training\.momentum: nothing reads 0\.5: training\.optimizer is 'adamw'; 'sgd' ",
        ),
        (["training.weight_decay=0", "training.weight_decay_on=('x',)"], r"training\.weight_decay is 0"),
        (["training.mesh.rules=(('a', 1),)"], r"training\.sharding is 'replicated'"),
        (["training.mesh.rules=(('a', 1),)", "training.sharding=rules"], r"set training\.mesh\.model"),
        (["evaluation.inference.multiple=8"], r"set evaluation\.inference\.scales"),
        (
            ["data.train.augment.canvas=bounding"],
            r"data\.train\.augment\.canvas: .*nothing is rotated",
        ),
    ],
)
def test_a_value_that_nothing_reads_is_refused(changes: list[str], message: str) -> None:
    config = toy.config()
    config["training"]["stages"][0]["model"] = {"deep": False}
    with pytest.raises(UserError, match=message):
        read_run(config, changes)


def test_a_file_may_write_out_a_default_that_no_stage_reads() -> None:
    config = toy.config()
    config["training"]["stages"][0]["model"] = {"deep": False}
    assert read_run({**config, "model": {**config["model"], "deep": False}}) == read_run(config)
    with pytest.raises(UserError, match=r"config\.model\.deep: nothing reads True"):
        read_run({**config, "model": {**config["model"], "deep": True}})


def test_two_runs_are_the_same_if_their_settings_are() -> None:
    run = toy.run()
    assert toy.run({"scale": 1, "poison": -1.0}, momentum=0.9, warmup_steps=0) == run
    assert differences(run, toy.run(log_every=99, init_from="gone", workers=3)) == []
    assert differences(run, read_run({**toy.config(), "name": "for other people"})) == []
    renamed = toy.config()
    renamed["training"]["stages"][0]["name"] = "other"  # a stage's name is that of its checkpoints
    assert differences(run, read_run(renamed)) == [
        "config.training.stages[0].name is 'base' there and 'other' here"
    ]
    other = read_run(toy.config(), ["training.stages[1].steps=9", "seed=1", "data.train.source.seed=5"])
    assert differences(run, other) == [
        "config.data.train.source.seed is 0 there and 5 here",
        "config.seed is 0 there and 1 here",
        "config.training.stages[1].steps is 5 there and 9 here",
    ]
