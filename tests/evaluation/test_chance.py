"""Masks of chance, on a system whose gate and score are known."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import tasks
from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import DEPTH, IMAGE, INDEX, SourceSpec
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.evaluation.chance import OTHER, SHUFFLED, shifted, shuffled
from dynpix_jax.evaluation.evaluator import evaluate, evaluate_system
from dynpix_jax.run_config import read_run
from dynpix_jax.visualization.report import Budget, ChanceBudget, chance_lines

SETTINGS = EvaluationConfig(mode="dense", pictures=0, chance=1)
VARIABLES = {"params": {"scale": np.float32(1.0)}}


class Bright(System):
    """Its gate computes where the image is bright; computed depths are 1 m, the others 4 m."""

    name, nested_gates = "bright", False

    def __init__(self):
        self.tasks = {"depth": tasks.build("depth", {}, "")}
        self.gated = {"gate": GatedLayer(("layer",))}

    def init(self, key, batch):
        return {"params": {"scale": jnp.ones(())}}

    def apply(self, variables, images, inputs=None, routing=Routing(), *, rngs=None):
        mask = routing.masks.get("gate", images[..., 0] > 127)
        assert mask.dtype == bool  # as `core.routing.check_mask` asks for
        depth = jnp.where(mask, 1.0, 4.0)[..., None] * variables["params"]["scale"]
        with jax.named_scope("layer"):
            depth = jnp.einsum("bhwi,io->bhwo", depth, jnp.eye(1))
        gates = {"gate": mask.astype(jnp.float32)}
        return Outputs(predictions={"depth": jnp.log(depth)}, gates=gates, selections={})

    def executed_shares(self, outputs):
        return {"gate": outputs.gates["gate"].mean((1, 2))}

    def ponder_maps(self, outputs, size):
        return {"total": outputs.gates["gate"]}

    def loss(self, variables, batch, *, rngs, controls):
        return jnp.zeros(()), LossAux({}, {})

    def adapt(self, given, fresh):
        return given


class Halves:
    """Images whose upper (even ones) or lower half (odd ones) is bright, and as deep as the system says."""

    spec = SourceSpec("halves", {"image": IMAGE, "depth": DEPTH, "index": INDEX})

    def __init__(self, count: int, wider: int = 0):
        self._count, self._wider = count, wider

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int):
        width = 8 + self._wider * (index % 3)
        bright = (np.arange(6) < 3) ^ (index % 2 == 1)
        bright = np.broadcast_to(bright[:, None], (6, width))
        image = np.where(bright, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
        depth = np.where(bright, 1.0, 4.0).astype(np.float32)
        return {"image": image, "depth": depth, "index": np.int64(index)}


def test_shuffling_keeps_each_images_density_and_nothing_else():
    rng = np.random.default_rng(0)
    first = rng.random((2, 20, 30)) < 0.3
    masks = {"a": first, "b": first & (rng.random(first.shape) < 0.5), "c": rng.random((2, 10, 15)) < 0.5}
    nested = shuffled(masks, [(0, 0), (0, 1)], nested=True)
    for name, mask in nested.items():
        np.testing.assert_array_equal(mask.sum((1, 2)), masks[name].sum((1, 2)))
        assert 0.2 < (mask == masks[name]).mean() < 0.9
    assert not (nested["b"] & ~nested["a"]).any()
    own = shuffled(masks, [(0, 0), (0, 1)], nested=False)
    assert (own["b"] & ~own["a"]).any()
    np.testing.assert_array_equal(own["a"], shuffled(masks, [(0, 0), (0, 1)], nested=False)["a"])
    assert (own["a"] != shuffled(masks, [(1, 0), (1, 1)], nested=False)["a"]).any()


def test_the_masks_of_the_image_after():
    """Of three places the last one fills the batch up."""
    masks = {"gate": np.stack([np.eye(4, dtype=bool), ~np.eye(4, dtype=bool), np.ones((4, 4), bool)])}
    after = {"gate": np.array([[[True, False], [False, True]]])}
    found = shifted(masks, 2, after)["gate"]
    np.testing.assert_array_equal(found[0], masks["gate"][1])
    np.testing.assert_array_equal(found[1], np.kron(after["gate"][0], np.ones((2, 2), bool)))
    assert found.shape == (3, 4, 4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_chance_reaches(batch_size):
    """A wrong mask is off by a factor of 4: log2 of it is 2 wherever own and given masks differ."""
    source = Halves(4, wider=2 if batch_size == 1 else 0)
    result = evaluate_system(Bright(), VARIABLES, source, replace(SETTINGS, batch_size=batch_size))
    assert result.numbers["rmse_log"] == pytest.approx(0.0, abs=1e-6)
    assert set(result.chance) == {SHUFFLED, OTHER}
    for one in result.chance.values():
        assert one.shares == pytest.approx({"gate": 0.5})
        assert one.macs == result.macs
    # The next image is bright in the other half, also that of the last image, which is the first one.
    assert result.chance[OTHER].numbers["rmse_log"] == pytest.approx(np.log(4.0), rel=1e-5)
    # Of two random halves a half agrees.
    assert result.chance[SHUFFLED].numbers["rmse_log"] == pytest.approx(np.log(4.0) * 0.5**0.5, rel=0.1)
    assert set(result.to_dict()["chance"][SHUFFLED]) >= {"macs_per_image", "rmse_log"}


def test_one_image_has_no_other_and_training_logs_have_no_chance():
    result = evaluate_system(Bright(), VARIABLES, Halves(1), replace(SETTINGS, chance=3))
    assert set(result.chance) == {SHUFFLED}
    assert set(evaluate(Bright(), VARIABLES, Halves(1), SETTINGS)) >= {"rmse_log", "density"}


def test_the_report_says_what_gates_have_learnt():
    score = tasks.build("boundaries", {}, "").scores[0]

    def row(density, value, **chance):
        found = {name: ChanceBudget(density, 1e9, {score.name: one}) for name, one in chance.items()}
        return Budget("gates", 0.5, density, 1e9, 2e9, {score.name: value}, {}, chance=found)

    ungated = row(None, 0.70)
    (line,) = chance_lines(score, [ungated, row(0.5, 0.68, shuffled=0.60, other=0.64)])
    assert "gating costs 0.0200, 33% of the 0.0600 that chance costs" in line
    (line,) = chance_lines(score, [ungated, row(0.5, 0.60, shuffled=0.60)])
    assert "learnt nothing" in line
    (line,) = chance_lines(score, [row(0.5, 0.68, shuffled=0.60)])
    assert "choosing is worth 0.0800" in line
    assert [one.stage for one in row(0.5, 0.6, shuffled=0.5).with_chance] == ["gates", "  shuffled masks"]


def test_a_network_without_gates_does_not_read_it():
    config, gated = ("configs/pag/scenes.py:variant=" + variant for variant in ("base", "gated"))
    with pytest.raises(UserError, match=r"config\.evaluation\.chance: .*no stage has gates"):
        read_run(config, ["evaluation.chance=1"])
    with pytest.raises(UserError, match=r"chance: 1, but .* several views .*: set evaluation\.chance=0"):
        read_run(gated, ["evaluation.chance=1", "evaluation.inference.flip=True"])
    assert read_run(gated, ["evaluation.chance=1"]).evaluation.chance == 1
