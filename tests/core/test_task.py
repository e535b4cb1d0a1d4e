"""What all tasks have in common, and the table of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.core.errors import UserError

OPTIONS: dict[str, dict] = {"segmentation": {"classes": 5}, "pose": {"shift_flipped": False}}
SHAPE = (2, 3, 4)


def all_tasks() -> list[tasks.Task]:
    return [tasks.build(name, OPTIONS.get(name, {}), "options") for name in tasks.TASKS]


@pytest.mark.parametrize("task", all_tasks(), ids=list(tasks.TASKS))
def test_every_task(task):
    """Predictions have the target's form; mixing one view changes nothing; two mirrors are none."""

    # Labels beside the target: the head sizes of people.
    more = {label: jnp.ones(2) for label in task.labels[1:]}

    @jax.jit
    def run(logits):
        prediction, other = task.decode(logits), task.decode(-logits)
        return {
            "prediction": prediction,
            # The prediction is itself a valid target.
            "loss": jax.value_and_grad(task.loss)(logits, prediction, jnp.array([True, False])),
            "differences": (task.difference(prediction, prediction), task.difference(prediction, other)),
            "mixed": task.decode(task.unmix(task.mix(logits))),
            "mirrored": task.mirror(task.mirror(logits)),
            "rescaled": task.rescale(logits, 1.0),
            "state": task.measure(
                prediction, more | {task.target: prediction, "valid": jnp.array([True] * 2)}
            )
            if isinstance(task, tasks.PixelTask)
            else {},
        }

    logits = np.random.default_rng(0).normal(size=(*SHAPE, task.channels)).astype(np.float32)
    found = jax.tree.map(np.asarray, run(logits))
    assert found["prediction"].shape[:3] == (SHAPE if task.stride == 1 else (2, task.channels, 3))
    assert task.logits_size((5, 8)) == ((5, 8) if task.stride == 1 else (2, 2))
    loss, gradient = found["loss"]
    assert np.isfinite(loss)
    assert gradient.shape == logits.shape
    assert not gradient[1].any()
    same, other = found["differences"]
    assert same < 1e-5 < other
    np.testing.assert_allclose(found["mixed"], found["prediction"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["mirrored"], logits)
    np.testing.assert_allclose(found["rescaled"], logits)
    names = [score.name for score in task.scores]
    assert len(set(names)) == len(names) > 0
    assert all(score.meaning and score.label for score in task.scores)
    assert hash(task) == hash(tasks.build(task.name, OPTIONS.get(task.name, {}), "options"))
    if isinstance(task, tasks.PixelTask):
        assert list(task.compute(found["state"])) == names


def test_build():
    task = tasks.build("segmentation", {"classes": 3, "class_weights": [1.0, 2.0, 0.5]}, "options")
    assert task.channels == task.class_count == 3
    with pytest.raises(UserError, match="options: there is no task 'dept'; did you mean 'depth'"):
        tasks.build("dept", {}, "options")
    with pytest.raises(UserError, match=r"options\.gama: unknown key; did you mean 'gamma'"):
        tasks.build("depth", {"gama": 1.0}, "options")
    with pytest.raises(UserError, match=r"options\.classes: missing"):
        tasks.build("segmentation", {}, "options")
    with pytest.raises(UserError, match=r"options\.classes: 1; expected at least 2"):
        tasks.build("segmentation", {"classes": 1}, "options")


def test_all_scores():
    both = {name: tasks.build(name, OPTIONS.get(name, {}), "") for name in ("segmentation", "depth")}
    scores = {score.name: score.label for score in tasks.all_scores(both)}
    assert scores["miou"] == "mIoU"
    assert scores["depth/rmse"] == "depth RMSE, m"
    assert len(scores) == 3 + 6


def test_check_labels():
    segmentation = tasks.build("segmentation", {"classes": 3, "instance_sizes": [[1, 5.0]]}, "options")
    system = {"segmentation": segmentation}
    have = {"segmentation": ("a", "b", "c"), "instances": ()}
    tasks.check_labels(system, have, "source x")
    for fields, message in (
        ({"depth": ()}, "source x: no 'segmentation' labels, task segmentation needs them; it has 'depth'"),
        ({"segmentation": ("a", "b", "c")}, "source x: no 'instances' labels"),
        (have | {"segmentation": ("a", "b")}, "source x: 2 classes of segmentation, the network has 3"),
    ):
        with pytest.raises(UserError, match=message):
            tasks.check_labels(system, fields, "source x")


def test_labels_are_resized_as_their_image():
    """Classes by the nearest pixel; an image twice as large shows a scene twice as near."""
    labels = jnp.arange(4.0).reshape(1, 2, 2)
    for name, expected in (("segmentation", labels), ("depth", labels / 2)):
        resized = tasks.TASKS.resolve(name, "").resize_label(labels, (4, 4))
        np.testing.assert_array_equal(resized, expected.repeat(2, 1).repeat(2, 2))
    normals = tasks.TASKS.resolve("normals", "").resize_label(jnp.ones((1, 2, 2, 3)), (2, 6))
    assert normals.shape == (1, 2, 6, 3)
