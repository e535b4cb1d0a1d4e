"""Rho holds what is paid for: the density of arg-max masks after a calibration. A tiny network."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.capabilities import Calibrates
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.data.sources import build_source
from dynpix_jax.flops import variable_shapes
from dynpix_jax.papers.pag.calibration import threshold
from dynpix_jax.papers.pag.system import GateConfig, Pag, PagConfig, gated_blocks

RHO = 0.7
GATE = GateConfig("pixel", "residual", rho=RHO, calibrate="each", calibration_images=16)
CONFIG = PagConfig("pag", "boundaries", ResNetConfig(depth=26, width=8), GATE, head_features=4, drop_blocks=4)
NAMES = gated_blocks(CONFIG)
IMAGES, HELD_OUT = (
    np.stack([scene["image"] for scene in build_source(dict(name="scenes", size=(48, 64), length=16), split)])
    for split in ("train", "val")
)
"""Rooms that a calibration sees, and other rooms."""


@functools.cache
def variables():
    """Random; every gate computes with probabilities a little above a half, as training leaves them."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        if path.endswith("gate/logits/bias"):
            return jnp.array([0.0, 0.5])
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        small = 0.02 if "/gate/" in path else 1.0
        return jnp.asarray(small * rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return map_named(draw, variable_shapes(Pag(CONFIG)))


@functools.cache
def masks_of(mode: str):
    """A compiled function: variables, images -> gate -> masks."""
    system = Pag(CONFIG)
    return jax.jit(lambda v, x: system.apply(v, x, {}, Routing(mode=mode)).gates)


@functools.cache
def calibrated(how: str):
    system = Pag(replace(CONFIG, gate=replace(GATE, calibrate=how)))
    assert isinstance(system, Calibrates)
    assert system.calibration_images == len(IMAGES)
    return system.calibrate(variables(), lambda place: IMAGES[place][None], len(IMAGES))


@pytest.mark.parametrize("how", ["each", "mean"])
def test_rho_holds_the_density_of_arg_max_masks_of_other_images(how):
    before = masks_of("dense")(variables(), HELD_OUT)
    assert all(abs(mask.mean() - RHO) > 0.2 for mask in before.values())
    found, note = calibrated(how)
    after = masks_of("dense")(found, HELD_OUT)
    densities = [float(after[name].mean()) for name in NAMES]
    assert np.mean(densities) == pytest.approx(RHO, abs=0.01)
    if how == "each":
        np.testing.assert_allclose(densities, RHO, atol=0.05)  # of 16 rooms
    assert "16 training images" in note
    jax.tree.map(np.testing.assert_array_equal, masks_of("sparse")(found, HELD_OUT), after)


def test_nothing_but_the_bias_of_computing_is_shifted():
    for how in ("each", "mean"):
        given, found = (dict(named_leaves(v)) for v in (variables(), calibrated(how)[0]))
        shifts = []
        for path, leaf in given.items():
            if path.endswith("gate/logits/bias"):
                assert found[path][0] == leaf[0]
                shifts.append(float(found[path][1] - leaf[1]))
            else:
                assert found[path] is leaf, path
        assert len(shifts) == len(NAMES)
        # By the same shift each gate keeps its learned share beside the others.
        assert (max(shifts) - min(shifts) < 1e-5) == (how == "mean")


def test_the_threshold_is_a_quantile_of_groups_that_weigh_the_same():
    values = np.arange(10.0)
    assert threshold([values], 0.7) == 2.5
    assert threshold([values], 1.0) < 0.0
    # A tie goes to one side as a whole, and no gate is closed altogether.
    assert threshold([np.array([0.0, 1.0, 1.0, 1.0])], 0.7) == 0.5
    assert threshold([np.array([0.0, 0.0, 0.0, 0.0])], 0.1) < 0.0
    # Half of one group and all of the other: .75 of both, though the other has most of the numbers.
    groups = [np.array([0.0, 2.0]), np.full(98, 1.0)]
    assert threshold(groups, 0.75) == 0.5


def test_calibration_is_an_option_of_gates_that_it_can_shift():
    plain = GateConfig("pixel", rho=RHO)
    assert plain.calibrate == "none"
    assert Pag(replace(CONFIG, gate=plain)).calibration_images == 0
    assert Pag(replace(CONFIG, gate=GateConfig())).calibration_images == 0
    with pytest.raises(ValueError, match="none shifts gates of kind 'layer'"):
        GateConfig("layer", calibrate="each")
    assert "calibration_images" in plain.unread()
