"""A task and a data source of a user, one file each outside of the package, from a config to the report."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers, tasks
from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli import train
from dynpix_jax.core.errors import UserError
from dynpix_jax.data.loader import make_loader
from dynpix_jax.data.scenes import Scenes, ScenesConfig
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source
from tests.papers.astmt.tiny import section as astmt_section
from tests.tiny import TINY_CONFIG

FOLDER = Path(__file__).parent
SIZE = (48, 64)
SCENES = '{"name": "scenes", "size": (48, 64), "length": 4, "fields": (args.task,)}'


@pytest.fixture(autouse=True)
def user_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs find modules in the folder that they are started in."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for index, scene in enumerate(Scenes(ScenesConfig(SIZE, 2, fields=("instances",)), split)):
            cv2.imwrite(str(tmp_path / split / f"{index}.jpg"), scene["image"][..., ::-1])
            cv2.imwrite(str(tmp_path / split / f"{index}.png"), scene["instances"].astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "lines"),
    [("my_tasks.py", 120), ("my_data.py", 40), ("my_gates.py", 60), ("my_backbones.py", 160)],
)
def test_a_file_is_short(file: str, lines: int) -> None:
    assert len((FOLDER / file).read_text(encoding="utf-8").splitlines()) <= lines


def test_source(root: Path) -> None:
    source = build_source({"name": "my_data:Things", "root": str(root)}, "val")
    check_source(source)
    scene = Scenes(ScenesConfig(SIZE, 2, fields=("instances",)), "val")[1]
    np.testing.assert_array_equal(source[1]["instances"], scene["instances"])


def test_a_worker_process_reads_it(root: Path) -> None:
    source = build_source({"name": "my_data:Things", "root": str(root)}, "val")
    batches = iter(make_loader(source, batch_size=2, train=False, workers=1))
    try:
        np.testing.assert_array_equal(next(batches)["instances"][1], source[1]["instances"])
    finally:
        batches.close()


def test_edges() -> None:
    task = tasks.build("my_tasks:InstanceEdges", {"positive_weight": 0.5}, "options")
    target = jnp.array([[[1, 1, 2], [1, 255, 2]]])
    # Half of the mean over five known pixels, of which (0, 1) and (1, 0) are edges, as are those above 255.
    edges = jnp.array([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    logits = jnp.where(edges > 0, 20.0, -20.0)[..., None]
    valid = jnp.array([True])
    assert float(task.loss(logits, target, valid)) < 1e-6
    assert float(task.loss(-logits, target, valid)) == pytest.approx(10.0)
    assert float(task.loss(jnp.zeros((1, 2, 3, 1)), target, valid)) == pytest.approx(np.log(2) / 2)


def test_beside_other_tasks() -> None:
    """In a network for several tasks it has its own name."""
    mine = "my_tasks:InstanceEdges"
    section = astmt_section(tasks=(mine, "depth"), task_weights={mine: 2.0})
    system = papers.build(section)
    assert list(system.tasks) == ["instance_edges", "depth"]
    images = jnp.zeros((1, 16, 16, 3))
    variables = jax.eval_shape(lambda key: system.init(key, {"image": images}), jax.random.key(0))
    outputs = jax.eval_shape(system.apply, variables, images)
    assert outputs.predictions["instance_edges"].shape == (1, 16, 16, 1)


def test_trained_evaluated_and_drawn(root: Path, tmp_path: Path) -> None:
    """The network has side outputs, as the task asks for."""
    config = TINY_CONFIG.replace(SCENES, f'{{"name": "my_data:Things", "root": "{root}"}}')
    config = config.replace('"task": args.task', '"task": "my_tasks:InstanceEdges"')
    config = config.replace('"head_features": 4', '"head_features": 4, "drop_blocks": 6')
    config = config.replace('{"name": "base", "steps": 2, "learning_rate": 1e-5},', "")
    assert config.count("my_") == 2
    file = tmp_path / "tiny.py"
    file.write_text(config.replace('"steps": 2', '"steps": 1'))
    argv = [f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    assert train.main(argv) == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["instance_edges"] > line["fusion"] > 0
    assert eval_program.main([*argv, "--set", "evaluation.mode=dense"]) == 0
    row = json.loads((tmp_path / "run" / "eval.json").read_text())["rows"][0]
    assert row["tasks"] == ["instance_edges"]
    assert row["delta_scores"] == {"instance_edges": {"score": "ods", "higher_is_better": True}}
    assert 0 <= row["modes"]["dense"]["ods"] <= 1
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Edges between things are orange." in report
    assert "Ground truth" in report


ANYTIME = dict(
    system="anytime",
    task="my_tasks:InstanceEdges",
    backbone=dict(name="hrnet", arch="w18s1", width=4, blocks=1),
    exits=(3, 4),
    weights=(1.0, 1.0),
    heads=dict(kind="plain"),
)


def test_in_the_anytime_system() -> None:
    """Its exits predict it, and stop where no edge is likely: logits below the threshold."""
    likely = dict(measure="max_value", threshold=0.0)
    system = papers.build({**ANYTIME, "adaptivity": dict(options=likely)})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, *SIZE, 3), np.uint8)
    variables = system.init(jax.random.key(0), {"image": images})
    outputs = jax.jit(system.apply)(variables, images)
    assert list(outputs.predictions) == ["instance_edges"]
    first, last = outputs.exits[0]["instance_edges"], outputs.predictions["instance_edges"]
    assert first.shape == last.shape == (1, *SIZE, 1)
    mask = np.asarray(outputs.gates["stage4"])
    assert 0.0 < mask.mean() < 1.0
    # Far from where stage 4 computes, the prediction is that of the exit before it; elsewhere it is not.
    near = mask.copy()
    for shift in (-1, 1):
        for axis in (1, 2):
            near = np.maximum(near, np.roll(near, shift, axis))
    far = np.kron(near, np.ones((1, 4, 4))) == 0
    np.testing.assert_allclose(np.asarray(last)[far], np.asarray(first)[far], atol=1e-5)
    assert np.abs(last - first).max() > 1e-3
    batch = {
        "image": images,
        "instances": np.asarray(rng.integers(0, 3, (1, *SIZE)), np.int32),
        "valid": np.ones(1, bool),
    }

    def loss(variables):
        return system.loss(variables, batch, rngs={}, controls=system.controls(jnp.int32(0), 10))

    value, aux = jax.jit(loss)(variables)
    logits = aux.terms["exit3"] + aux.terms["exit4"]
    assert float(value) == pytest.approx(float(logits))
    assert np.isfinite(float(value))


def test_anytime_knows_no_probability_of_a_class_of_it() -> None:
    """The softmax of one logit is 1 everywhere: nothing would be computed."""
    for kind in ("confidence", "top_k"):
        with pytest.raises(UserError, match=rf"adaptivity\.kind: '{kind}' with task 'my_tasks:Instance"):
            papers.build({**ANYTIME, "adaptivity": dict(kind=kind)})
