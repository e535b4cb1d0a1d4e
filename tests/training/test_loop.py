"""The loop in this process: stages, frozen leaves, non-finite losses, writers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.training.checkpoints import Checkpoints
from dynpix_jax.training.loop import train
from dynpix_jax.training.meter import NonFiniteError
from dynpix_jax.training.sharding import make_mesh
from dynpix_jax.training.stages import make_stage
from dynpix_jax.training.writers import ConsoleWriter, JsonlWriter, Writer
from tests.training import toy


class Record(Writer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, dict[str, Any]]] = []
        self.notes: list[str] = []

    def write(self, step: int, kind: str, values: Any) -> None:
        self.lines.append((step, kind, dict(values)))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_stages_frozen_leaves_and_schedules(tmp_path: Path) -> None:
    record = Record()
    seen = {}

    def evaluate(system: toy.ToySystem, variables: Any) -> dict[str, float]:
        seen[len(seen)] = jax.device_get(variables)
        return {"deep": float(system.deep)}

    run = toy.run(log_every=1, eval_every=6, checkpoint_every=0)
    result = train(run, tmp_path, batches=toy.batches(4), evaluate_fn=evaluate, writers=[record])
    assert result.finished
    assert int(result.state.step) == 11
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 11]
    # The second stage's frozen stem is the first stage's result; all else has moved, batch statistics too.
    before, after = seen[0], seen[1]
    np.testing.assert_array_equal(before["params"]["stem"]["kernel"], after["params"]["stem"]["kernel"])
    assert not np.array_equal(before["params"]["head"]["kernel"], after["params"]["head"]["kernel"])
    assert not np.array_equal(before["batch_stats"]["bn"]["mean"], after["batch_stats"]["bn"]["mean"])
    assert "extra" in after["params"]
    assert "extra" not in before["params"]

    assert [(step, kind) for step, kind, _ in record.lines if kind == "eval"] == [(6, "eval"), (11, "eval")]
    lines = [values for _, kind, values in record.lines if kind == "train"]
    # Controls and learning rate begin anew with the stage.
    temperatures = [values["temperature"] for values in lines]
    expected = [1 - 0.9 * t / 6 for t in range(6)] + [1 - 0.9 * t / 5 for t in range(5)]
    np.testing.assert_allclose(temperatures, expected, rtol=1e-6)
    np.testing.assert_allclose(lines[6]["learning_rate"], 0.05, rtol=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert "33 trained" in record.notes[1]


def test_the_seed_draws_the_first_weights() -> None:
    def first_weights(seed: int) -> list[np.ndarray]:
        run = dataclasses.replace(toy.run(), seed=seed)
        stage = make_stage(run, 0, make_mesh(run.training.mesh, 4, 1), (*toy.SIZE, 3))
        return jax.tree.leaves(jax.device_get(stage.init(None).params))

    one, same, other = (first_weights(seed) for seed in (0, 0, 1))
    assert all(map(np.array_equal, one, same))
    assert not all(map(np.array_equal, one, other))


@pytest.mark.parametrize("log_every", [1, 100])
def test_loss_that_is_not_finite_stops(tmp_path: Path, log_every: int) -> None:
    # Update 4 and later; the save due after update 4 must not happen.
    run = toy.run({"poison": 3.0}, log_every=log_every, checkpoint_every=2)
    with pytest.raises(NonFiniteError) as error:
        train(run, tmp_path, batches=toy.batches(4), writers=())
    iterator = toy.batches(4).start()
    ids = [next(iterator)["index"] for _ in range(4)][3]
    message = str(error.value)
    assert "step 4 (stage 'base')" in message
    assert "fit=nan" in message
    assert f"batch elements {ids.tolist()}" in message
    assert "\n" not in message
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]


def test_mesh_that_does_not_fit(tmp_path: Path) -> None:
    for changes, message in (
        ({"mesh": {"data": 3}}, "data 3 x model 1 does not fit"),
        ({"mesh": {"model": 7}}, "model 7 does not fit"),
    ):
        with pytest.raises(UserError, match=message):
            train(toy.run(**changes), tmp_path, batches=toy.batches(4), writers=())


def test_data_that_ends(tmp_path: Path) -> None:
    short = toy.Batches(toy.grain.MapDataset.source(toy.ToyData()).batch(4))
    with pytest.raises(UserError, match="no more elements at step 4"):
        train(toy.run(), tmp_path, batches=short, writers=())


def test_jsonl_forgets_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(file)
    for step, kind in ((2, "train"), (4, "train"), (4, "eval"), (6, "train")):
        writer.write(step, kind, {"loss": float(step)})
    writer.close()
    with file.open("a") as stream:
        stream.write('{"step": 4, "ki')
    for evaluated, expected in (
        (True, [(2, "train"), (4, "train"), (4, "eval")]),
        (False, [(2, "train"), (4, "train")]),
    ):
        JsonlWriter(file, 4, evaluated=evaluated).close()
        found = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(line["step"], line["kind"]) for line in found] == expected
    JsonlWriter(file).close()
    assert file.read_text() == ""


def test_console_writes_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    writer = ConsoleWriter(100)
    writer.note("stage 'base' [1/2]")
    writer.tick(20, "base")
    writer.write(20, "train", {"stage": "base", "loss": 0.123456, "images_per_second": 12.5})
    writer.close()
    expected = "stage 'base' [1/2]\ntrain 20/100 stage=base loss=0.1235 images_per_second=12.5\n"
    assert capsys.readouterr().out == expected


def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    # With the cache of this folder's tests, which keeps programs of any size.
    found: list[str] = []
    train(toy.run(), tmp_path / "a", batches=toy.batches(4), writers=[])
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
    try:
        train(toy.run(), tmp_path / "b", batches=toy.batches(4), writers=[])
    finally:
        jax.monitoring.clear_event_listeners()
    assert found.count("/jax/compilation_cache/cache_hits") >= 4  # initialisation and step of two stages
    assert "/jax/compilation_cache/cache_misses" not in found
