"""What a network takes beside the image: read from the source, and moved as the image is for every view."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers, tasks
from dynpix_jax.backbones import resnet
from dynpix_jax.bench import model
from dynpix_jax.bench.timed import Settings
from dynpix_jax.cli import main, predict
from dynpix_jax.cli.common import call
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import EvaluationConfig, InferenceConfig
from dynpix_jax.core.source import DEPTH, IMAGE, SourceSpec
from dynpix_jax.data.geometry import Geometry
from dynpix_jax.data.sources import build_source
from dynpix_jax.evaluation.evaluator import evaluate_system
from dynpix_jax.evaluation.inference import all_views, resize_inputs
from dynpix_jax.evaluation.runner import Runner
from dynpix_jax.flops import dense_report
from dynpix_jax.papers.perspective.config import PerspectiveConfig
from dynpix_jax.run_config import read_run
from dynpix_jax.serving.trained import Trained
from tests.papers.perspective import formulas

TASKS = {"depth": tasks.build("depth", {}, "")}
SECTION = dict(
    system="perspective",
    segmentation=dict(classes=8),
    backbone=dict(depth=18, width=4),
    pooling=dict(signal="gt_depth"),
    features=8,
    loops=0,
)
CONFIG = Path(__file__).resolve().parents[2] / "configs/perspective/scenes.py:variant=gt_depth"
VIEWS = InferenceConfig(scales=(0.5, 1.0), flip=True)


def echo(images, depth):
    """Predicts the depth that it is given."""
    assert images.shape[:3] == depth.shape
    return {"depth": jnp.log(depth)[..., None]}, {"pixels": jnp.full(len(depth), 1.0 * depth[0].size)}


@pytest.mark.parametrize(
    ("config", "pixels"),
    [
        (InferenceConfig(flip=True), 2 * 96),
        (InferenceConfig(window=(5, 7), stride=(2, 3)), 3 * 3 * 35),
        (InferenceConfig(window=(8, 7), scales=(1.0, 2.0), flip=True), 2 * (2 * 56 + 3 * 5 * 56)),
    ],
)
def test_a_network_that_repeats_its_input_gives_it_back_from_every_view(config, pixels):
    rng = np.random.default_rng(0)
    depth = jnp.asarray(rng.uniform(1.0, 5.0, (2, 8, 12)), jnp.float32)
    if 2.0 in config.scales:
        depth = jnp.full((2, 8, 12), 3.0)  # enlarging is exact for a plane only
    images = jnp.zeros((2, 8, 12, 3), jnp.uint8)
    logits, costs = jax.jit(all_views(echo, TASKS, config))(images, depth=depth)
    np.testing.assert_allclose(jnp.exp(logits["depth"][..., 0]), depth, rtol=1e-5)
    np.testing.assert_array_equal(costs["pixels"], pixels)


def test_a_depth_is_resized_as_training_does_it():
    """Against the augmentation's own geometry, where both round alike: half and three times the size."""
    rng = np.random.default_rng(1)
    depth = rng.uniform(1.0, 5.0, (8, 12)).astype(np.float32)
    depth[rng.random((8, 12)) < 0.3] = 0.0
    element = {"image": np.zeros((8, 12, 3), np.uint8), "depth": depth}
    spec = SourceSpec("frames", {"image": IMAGE, "depth": DEPTH})
    for scale in (0.5, 3.0):
        size = (int(8 * scale), int(12 * scale))
        moved = Geometry(scale=scale).apply(element, spec)["depth"]
        found = resize_inputs({"depth": jnp.asarray(depth[None])}, size)["depth"][0]
        assert found.shape == moved.shape == size
        np.testing.assert_allclose(found, moved, rtol=1e-6)
    with pytest.raises(UserError, match="inputs: there is no task 'points'"):
        resize_inputs({"points": jnp.zeros((1, 8, 12))}, (4, 6))


@pytest.fixture(scope="module")
def gated():
    """A network of one block a stage whose pooling a depth gates, and its variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet._BLOCKS, 18, (1, 1, 1, 1))
        system = papers.build(SECTION)
        images = jnp.zeros((1, 48, 64, 3))
        yield system, jax.jit(system.init)(jax.random.key(0), {"image": images})


def scenes(*fields: str):
    section = dict(name="scenes", size=(48, 64), length=3, fields=fields)
    return build_source(section, "val")


def test_a_network_gated_by_a_depth_is_evaluated_from_several_views(gated):
    system, variables = gated
    source = scenes("segmentation", "depth")
    settings = EvaluationConfig(mode="dense", pictures=3, batch_size=2, inference=VIEWS)
    result = evaluate_system(system, variables, source, settings)
    assert 0 <= result.numbers["miou"] <= 1
    whole, half = (dense_report(system, size).total for size in ((48, 64), (24, 32)))
    assert result.macs == pytest.approx(2 * (whole + half))

    # By hand, from the four views of the last image.
    element = source[2]
    run = jax.jit(lambda image, depth: system.apply(variables, image, {"depth": depth}).predictions)
    image, depth = element["image"][None].astype(np.float32), element["depth"][None]
    total = 0.0
    for turn in (slice(None), slice(None, None, -1)):
        seen, far = image[:, :, turn], depth[:, :, turn]
        small = jax.image.resize(seen, (1, 24, 32, 3), "linear", antialias=True)
        views = ((seen, far), (small, far[:, 1::2, 1::2] / 0.5))
        for one, metres in views:
            logits = run(one, metres)["segmentation"]
            logits = jax.image.resize(logits, (1, 48, 64, 8), "bilinear", antialias=False)
            total += jax.nn.softmax(logits)[:, :, turn] / 4
    found = result.seen[2][1]["dense"].outputs.predictions["segmentation"]
    np.testing.assert_allclose(jax.nn.softmax(found), total, atol=1e-5)


def test_one_view_and_the_time_of_both_modes(gated):
    system, variables = gated
    runner = Runner(system, variables, InferenceConfig(scales=(0.5,)))
    element = scenes("segmentation", "depth")[0]
    result = runner(element["image"], "dense", depth=element["depth"])
    assert result.seen == (24, 32)
    weights = result.outputs.selections["loop_0"]
    # At half the size everything is twice as far: no pixel is nearer than before.
    plain = Runner(system, variables)(element["image"], "dense", depth=element["depth"])
    assert weights[..., 0].mean() > plain.outputs.selections["loop_0"][..., 0].mean()
    assert model.gate_shapes(system, (48, 64)) == {}
    with pytest.raises(ValueError, match="no gates"):
        model.programs(system, (48, 64), Settings((0.5,)))


def test_a_source_without_it(gated):
    settings = EvaluationConfig(mode="dense")
    with pytest.raises(
        UserError, match="source scenes: no 'depth', which the network takes beside the image"
    ):
        evaluate_system(*gated, scenes("segmentation"), settings)


def test_a_photo_has_none(gated, tmp_path, capsys, monkeypatch):
    """dynpix predict says so before it reads a photo."""
    trained = Trained(*gated, "gating", 1, 1.0)
    monkeypatch.setattr(predict, "open_run", lambda *arguments: trained)
    command = ["predict", f"--config={CONFIG}", f"--workdir={tmp_path}", "--out", str(tmp_path), "a.jpg"]
    assert call("dynpix", lambda: main.main(command)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "takes depth beside the image, which a photo does not have" in line


def test_flops_of_such_a_config(capsys):
    assert main.main(["flops", f"--config={CONFIG}", "--size=96x128", "--json"]) == 0
    config = read_run(str(CONFIG)).stages[-1].model
    assert isinstance(config, PerspectiveConfig)
    assert (config.pooling.signal, config.loops) == ("gt_depth", 0)
    expected = formulas.step_macs(config, 8, (96, 128))
    assert (json.loads(capsys.readouterr().out)["macs"], 0.0) == expected
