"""What keeps less in memory, and changes no result: rematerialisation, microbatches, donated state."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from dynpix_jax import papers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.rng import streams
from dynpix_jax.core.settings import MeshConfig
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.flops import system_macs, variable_shapes
from dynpix_jax.nn.remat import rematerialized
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.sharding import host_norms_as_numbers, make_mesh, run_mesh
from dynpix_jax.training.stages import make_stage
from dynpix_jax.training.step import STREAMS
from tests.tiny_systems import ANYTIME, PERSPECTIVE
from tests.training import toy

SIZE = (16, 24)
RESNET = dict(depth=26, width=4, output_stride=16)
PAG = dict(system="pag", task="depth", backbone=RESNET, head_features=4, drop_blocks=6)
SYSTEMS = {
    "pag": PAG | dict(gate=dict(kind="pixel", scope="residual")),
    "pixelnet": dict(
        system="pixelnet",
        task="depth",
        backbone=dict(width=4),
        hypercolumn=dict(layers=("conv1_2", "conv3_3")),
        mlp=dict(hidden=(8,)),
    ),
    "anytime": ANYTIME,
    "perspective": PERSPECTIVE | dict(backbone=dict(depth=26, width=4), loops=1, depth={}),
    "astmt": dict(
        system="astmt",
        tasks=("boundaries", "depth"),
        backbone=dict(se=True, depth=26, width=4, output_stride=16, frozen_norm=False, stride_in_1x1=False),
        encoder=dict(se=True, norm=True, adapters=True),
        decoder=dict(features=6, rates=(1,)),
    ),
    "mdeq": dict(
        system="mdeq",
        task_options=dict(classes=3),
        cell=dict(channels=(4, 8), groups=2, expansion=2),
        anytime=dict(iterations=()),
    ),
}
FAST = ("pag",)


@cache
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (2, *SIZE, 3), np.uint8),
        "depth": rng.uniform(1, 5, (2, *SIZE)).astype(np.float32),
        "boundaries": (rng.random((2, *SIZE)) < 0.1).astype(np.float32),
        "segmentation": rng.integers(0, 3, (2, *SIZE)).astype(np.int32),
        "valid": np.ones(2, bool),
        "index": np.arange(2),
    }


def drawn(path: str, leaf: Any) -> np.ndarray:
    """Random kernels; norms as a network begins."""
    if path.endswith("kernel"):
        scale = int(np.prod(leaf.shape[:-1])) ** -0.5
        return np.random.default_rng(len(path)).normal(0, scale, leaf.shape).astype(np.float32)
    return np.full(leaf.shape, float(path.endswith(("scale", "var", "lam"))), np.float32)


def same(found: Any, plain: Any) -> None:
    """Gradients are equal to 1e-6 of the largest value."""
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    assert scale > 0
    for (name, leaf), (_, other) in zip(named_leaves(found), named_leaves(plain), strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-6 * scale, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SYSTEMS]
)
def test_gradients_of_what_is_computed_twice(name: str) -> None:
    system = papers.build(SYSTEMS[name])
    variables = map_named(drawn, variable_shapes(system))
    others = {kind: tree for kind, tree in variables.items() if kind != "params"}

    def gradient(remat: str) -> tuple[Any, int]:
        def loss(params: Any) -> jax.Array:
            controls, rngs = system.controls(jnp.int32(1), 4), streams(0, STREAMS, 0)
            return system.loss({"params": params, **others}, batch(), rngs=rngs, controls=controls)[0]

        with rematerialized(remat) as met:
            traced = jax.jit(jax.grad(loss)).trace(variables["params"])
        assert bool(met) == (remat != "none")
        return traced.lower().compile()(variables["params"]), str(traced.jaxpr).count("remat")

    plain, own = gradient("none")  # a system may recompute some parts in any case
    for remat in ("blocks",) if name in FAST else ("blocks", "stages"):
        found, parts = gradient(remat)
        assert parts > own
        same(found, plain)


def traced_loss(name: str) -> tuple[Any, Any]:
    """The loss of a system as a function of its parameters, and their shapes."""
    system = papers.build(SYSTEMS[name])
    shapes = variable_shapes(system)
    others = {kind: jax.tree.map(lambda leaf: jnp.ones(leaf.shape), tree) for kind, tree in shapes.items()}

    def loss(params: Any) -> jax.Array:
        controls, rngs = system.controls(jnp.int32(1), 4), streams(0, STREAMS, 0)
        return system.loss({**others, "params": params}, batch(), rngs=rngs, controls=controls)[0]

    return loss, shapes["params"]


def remats(jaxpr: Any) -> int:
    """How many parts a program computes again, those within others, too."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name in ("checkpoint", "remat2")
        found += sum(remats(inner) for inner in core.jaxprs_in_params(eqn.params))
    return found


@pytest.mark.parametrize("remat", ["backbone/res2_.*", r"backbone/res2_\d", "backbone.*"])
def test_parts_within_a_part_are_not_parts_of_their_own(remat: str) -> None:
    """The regex of the docs matches the convolutions within the two blocks, too."""
    loss, params = traced_loss("pag")
    with rematerialized(remat) as met:
        found = remats(jax.make_jaxpr(lambda params: loss(params))(params).jaxpr)
    blocks = {"backbone/res2_1", "backbone/res2_2"}
    if remat == "backbone.*":
        assert blocks < met  # stem and blocks: the backbone itself is no call
        assert not any(path.count("/") > 1 for path in met)
        assert found == len(met)
    else:
        assert (met, found) == (blocks, 2)


@pytest.mark.parametrize("remat", ["cell", "cell/branch_.*", "cell/post_conv_0"])
def test_a_regex_on_the_cell_holds_in_training(remat: str) -> None:
    """MDEQ applies its cell on its own, many times."""
    loss, params = traced_loss("mdeq")
    plain = remats(jax.make_jaxpr(jax.grad(lambda params: loss(params)))(params).jaxpr)
    with rematerialized(remat) as met:
        found = remats(jax.make_jaxpr(jax.grad(lambda params: loss(params)))(params).jaxpr)
    assert met
    assert all(path.startswith("cell") for path in met)
    assert found > plain


def stage_of(model: Any, **training: Any) -> Any:
    """A stage of plain SGD of rate 1, whose step subtracts the gradient."""
    stages = [{"name": "base", "steps": 4, "learning_rate": 1.0}]
    settings = {"batch_size": 2, "stages": stages, "optimizer": "sgd", "weight_decay": 0.0, "momentum": 0.0}
    run = read_run({**toy.config(), "model": model, "training": settings | {"poly_power": 0.0} | training})
    return run, make_stage(run, 0, make_mesh(MeshConfig(), 2), (*SIZE, 3))


def test_operations_of_a_step_are_known() -> None:
    """What `mfu` divides: what is computed again or in parts is the same work."""
    _, plain = stage_of(PAG)
    _, smaller = stage_of(PAG, remat="blocks", microbatches=2)
    found = plain.flops(batch())
    assert found == smaller.flops(batch())
    forward = 2 * len(batch()["image"]) * system_macs(plain.system, SIZE).report.total
    # Gradients are two more products, but there are none of the images; the loss enlarges predictions.
    assert 2 * forward < found < 4 * forward


# Their heads have no norms, or frozen ones; nothing is drawn.
FROZEN = {
    "pag": (PAG, "backbone/res2_2"),
    "anytime": (ANYTIME | dict(backbone=ANYTIME["backbone"] | dict(frozen_norm=True)), "stages"),
    "perspective": (
        PERSPECTIVE | dict(backbone=dict(depth=26, width=4, frozen_norm=True), frozen_norm=True, dropout=0.0),
        "blocks",
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FROZEN]
)
def test_microbatches_of_frozen_norms_have_the_gradient_of_the_batch(name: str) -> None:
    found = []
    model, remat = FROZEN[name]
    for training in ({}, {"microbatches": 2, "remat": remat}):
        _, stage = stage_of(model, **training)
        state = stage.init(None)
        before = jax.tree.map(jnp.copy, state.params)  # on the device: what the host looks at is kept
        after, metrics = stage.step(state, batch())
        # Its memory is that of the new state.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
        change = jax.tree.map(jnp.subtract, before, after.params)
        found.append((change, {"loss": metrics["loss"], "norm": metrics["grad_norm"]}))
    (plain, metrics), (parts, of_parts) = found
    same(parts, plain)
    same(of_parts, metrics)


def test_running_averages_move_once_a_microbatch() -> None:
    model = toy.config()["model"]
    _, stage = stage_of(model, microbatches=2)
    state = stage.init(None)
    stem = jax.device_get(state.params)["stem"]
    images = batch()["image"].astype(np.float32) / 255
    window = jax.lax.conv_general_dilated(
        images, stem["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    first, second = (window + stem["bias"]).mean((1, 2))  # a part is an image
    moved = stage.step(state, batch())[0].collections["batch_stats"]["bn"]["mean"]
    np.testing.assert_allclose(moved, 0.9 * 0.1 * first + 0.1 * second, rtol=1e-5, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device."""

    id: int
    process_index: int


def test_norms_of_a_host() -> None:
    """Each host's images, in the order of a ring of v5e-16: rows of four chips, hosts of two by two."""
    model = SYSTEMS["pixelnet"] | dict(norm_group="host", backbone=dict(width=4, batch_norm=True))
    run, stage = stage_of(model, microbatches=2)
    assert stage.system.config.norm_group == 1  # one host; a part has one image
    ring = [Chip(i, host) for i, host in enumerate([0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0])]
    training = dataclasses.replace(run.training, batch_size=64, mesh=MeshConfig(model=2))
    run = dataclasses.replace(run, training=training)
    mesh = run_mesh(run, ring)
    assert mesh.shape == {"data": 8, "model": 2}
    assert [chip.process_index for chip in mesh.devices.flat] == [h for h in range(4) for _ in range(4)]
    assert host_norms_as_numbers(run.stages[0].model, mesh, training).norm_group == 64 // 2 // 4
    number = dataclasses.replace(run.stages[0].model, norm_group=4)
    assert host_norms_as_numbers(number, mesh, training) is number


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"microbatches: 4 does not divide the 2 images of each of 1 devices"):
        make_mesh(MeshConfig(), 2, 4)
    with pytest.raises(UserError, match=r"training.remat: '\(' is not a regular expression"):
        stage_of(PAG, remat="(")
    run, _ = stage_of(PAG, remat="backbone/res9")
    with pytest.raises(UserError, match=r"config.training.remat: .* stage 'base' has no 'backbone/res9'"):
        check_stages(run)
