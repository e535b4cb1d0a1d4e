"""What is read of eval.json files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.paper_tables import read_runs
from dynpix_jax.evaluation.results import EvaluatedData, read_results

CONFIG = load_config("configs/pag/scenes.py:task=boundaries,variant=base").to_dict()

ROW = {"stage": "base", "tasks": ["boundaries"], "macs_per_image": 1e9, "modes": {"dense": {"ods": 0.5}}}


def written(folder: Path, **facts: object) -> Path:
    file = folder / "eval.json"
    file.write_text(json.dumps({"config": CONFIG, "rows": [ROW], **facts}))
    return file


@pytest.mark.parametrize("name", ["scenes", "rooms of Ghent, 2nd floor", "a test, 3 images"])
def test_a_data_set_may_have_any_name(tmp_path, name):
    data = EvaluatedData(name, "test", 654)
    file = written(tmp_path, data=str(data), source=name, split="test", images=654)
    (row,) = read_results(file)
    assert row.data == f"{name} test, 654 images"
    assert row.source == name
    assert [identity.source for identity in read_runs(tmp_path)] == [name]


@pytest.mark.parametrize("name", ["scenes", "rooms of Ghent, 2nd floor"])
def test_of_files_with_the_sentence_alone(tmp_path, name):
    (row,) = read_results(written(tmp_path, data=f"{name} test, 654 images"))
    assert row.source == name
