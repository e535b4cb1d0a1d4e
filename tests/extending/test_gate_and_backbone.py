"""Files of a user, outside of the package, named in a config: a gate in PAG and in the anytime system, and a
backbone in PAG, recurrent scene parsing and PixelNet. docs/extending.md shows them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynpix_jax import papers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import System
from dynpix_jax.run_config import read_run
from tests.papers.anytime.test_anytime import compiled

FOLDER = Path(__file__).parent
SIZE = (36, 44)
CLASSES = 5
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, *SIZE, 3), np.uint8)
BATCH = {
    "image": jnp.asarray(IMAGES),
    "segmentation": jnp.asarray(RNG.integers(0, CLASSES, (2, *SIZE), np.int32)),
    "valid": jnp.ones(2, bool),
}
TOP_K = dict(kind="my_gates:TopK", options=dict(share=0.4))
CONVNEXT = dict(name="my_backbones:ConvNeXtConfig", depths=(1, 1), widths=(6, 8))
TASK = dict(task="segmentation", task_options=dict(classes=CLASSES))
SECTIONS: dict[str, dict[str, Any]] = {
    "gate in PAG": dict(
        system="pag",
        **TASK,
        backbone=dict(name="resnet", depth=26, width=4, output_stride=16),
        gate=dict(TOP_K, scope="residual", weight=0.0),
        head_features=4,
        drop_blocks=4,
    ),
    "gate in anytime": dict(
        system="anytime",
        **TASK,
        backbone=dict(name="hrnet", arch="w18s1", width=4, blocks=1),
        exits=(3, 4),
        weights=(1.0, 1.0),
        heads=dict(kind="plain"),
        adaptivity=TOP_K,
    ),
    "backbone in PAG": dict(
        system="pag",
        **TASK,
        backbone=CONVNEXT,
        gate=dict(kind="pixel", scope="residual", rho=0.5),
        head_features=4,
    ),
    "both in PAG": dict(
        system="pag",
        **TASK,
        backbone=CONVNEXT,
        gate=dict(TOP_K, scope="conv3x3", weight=0.0),
        multipool=dict(blocks=("stage2_1",), dilations=(0, 1, 2)),
        head_features=4,
        res6=True,
    ),
    "backbone in perspective": dict(
        system="perspective",
        segmentation=dict(classes=CLASSES),
        backbone=CONVNEXT,
        pooling=dict(signal="attention", gate="argmax"),
        features=6,
        loops=1,
    ),
    "backbone in PixelNet": dict(
        system="pixelnet",
        **TASK,
        backbone=CONVNEXT,
        hypercolumn=dict(layers=("stage1", "stage2")),
        mlp=dict(hidden=(8,)),
        sampling=dict(pixels=20),
        chunk=200,
    ),
}

MISSPELT = {
    "gate in PAG": "gate.options.shar",
    "gate in anytime": "adaptivity.options.shar",
    **dict.fromkeys([name for name in SECTIONS if "gate in" not in name], "backbone.dept"),
}
"""A key of each that is nobody's."""


@pytest.fixture(autouse=True)
def user_files(monkeypatch):
    """The folder in which a user started the program; the entry points put it on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))


def random_variables(system: System):
    """Random everything: fresh norms and scores would hide much."""
    shapes = jax.eval_shape(lambda key: system.init(key, {"image": IMAGES}), jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_config_file_names_them(name, tmp_path):
    """As a user's file gives them: parsed with everything else of a run, and what is built is theirs."""
    file = tmp_path / "own.py"
    file.write_text(
        "import my_config\n\n"
        "def get_config():\n"
        "    config = my_config.get_config()\n"
        f"    config.model = {SECTIONS[name]!r}\n"
        "    return config\n"
    )
    (stage,) = read_run(str(file)).stages
    assert papers.build(stage.model).variable_shapes == papers.build(SECTIONS[name]).variable_shapes
    with pytest.raises(UserError, match=r"config\.model\..*(shar|dept)"):
        read_run(str(file), [f"model.{MISSPELT[name]}=3"])


@pytest.mark.parametrize("name", SECTIONS)
def test_both_modes_give_the_same(name):
    system = papers.build(SECTIONS[name])
    variables = random_variables(system)

    def run(mode):
        # Without a name each layer of an HRNet chooses while it runs: all that it may choose is compiled.
        gathers = name == "gate in anytime" and mode == "sparse"
        routing = Routing(mode=mode, implementation="gather" if gathers else None)
        program = compiled(
            lambda variables, images: system.apply(variables, images, {}, routing),
            *(variables, IMAGES),
            gathers=gathers,
        )
        return program(variables, IMAGES)

    dense, sparse = run("dense"), run("sparse")
    logits = dense.predictions["segmentation"]
    assert logits.shape == (2, *SIZE, CLASSES)
    np.testing.assert_allclose(
        sparse.predictions["segmentation"], logits, atol=1e-4 * float(jnp.abs(logits).max()), rtol=1e-4
    )
    if "gate" in name or "PAG" in name:
        assert dense.gates
        for gate, mask in dense.gates.items():
            np.testing.assert_array_equal(mask, sparse.gates[gate])
            assert 0.0 < float(mask.mean()) < 1.0, gate
    if SECTIONS[name].get("gate", SECTIONS[name].get("adaptivity", {})).get("kind") == TOP_K["kind"]:
        for mask in dense.gates.values():
            np.testing.assert_array_equal(mask.sum((1, 2)), round(0.4 * mask[0].size))


def test_a_gate_without_parameters_in_training():
    """It holds its share there, too. What learns is the network, by the gradients of test_anytime."""
    system = papers.build(SECTIONS["gate in anytime"])
    loss = jax.jit(partial(system.loss, rngs={}, controls=system.controls(jnp.int32(0), 10)))
    value, aux = loss(random_variables(system), BATCH)
    assert np.isfinite(float(value))
    positions = (SIZE[0] // 4) * (SIZE[1] // 4)
    assert float(aux.terms["density_stage4"]) == pytest.approx(round(0.4 * positions) / positions)


@pytest.mark.parametrize(
    "name", [name for name in SECTIONS if name not in ("gate in anytime", "both in PAG")]
)
def test_a_training_step(name):
    """Every parameter of the user's modules has a gradient; a step lowers the loss of the same batch."""
    system = papers.build(SECTIONS[name])
    variables = random_variables(system)
    streams = ("dropout", "gumbel", "points")
    rngs = {stream: jax.random.key(index) for index, stream in enumerate(streams)}

    # Arguments rather than constants, which would be folded while the program is compiled.
    @jax.jit
    def gradients(variables, batch, rngs):
        def loss(params):
            given = {**variables, "params": params}
            value, aux = system.loss(given, batch, rngs=rngs, controls=system.controls(jnp.int32(0), 10))
            return value, aux.terms

        value, gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, gradient, optax.tree.norm(gradient)

    (before, terms), gradient, size = gradients(variables, BATCH, rngs)
    assert np.isfinite(float(before)), terms
    if "backbone" in name:
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradient["backbone"])[0]:
            assert np.any(leaf), jax.tree_util.keystr(path)
    if name == "gate in PAG":
        assert np.any(gradient["backbone"]["res2_1"]["gate"]["score"]["kernel"])
    assert float(size) > 0.0
    if "gate" in name:  # its masks jump as parameters move
        return
    step = 1e-3 / float(size)
    smaller = jax.tree.map(
        lambda leaf, slope: np.asarray(leaf) - step * np.asarray(slope), variables["params"], gradient
    )
    (after, _), *_ = gradients({**variables, "params": smaller}, BATCH, rngs)
    assert float(after) < float(before)


def test_what_is_not_there_is_told():
    with pytest.raises(
        UserError, match=r"config\.model\.backbone\.name: module 'my_backbones' has no 'ConvNext'"
    ):
        papers.build({**SECTIONS["backbone in PAG"], "backbone": dict(name="my_backbones:ConvNext")})
    gate = dict(kind="my_gates:TopK", options=dict(shere=0.5))
    with pytest.raises(UserError, match=r"config\.model\.gate\.options\.shere: unknown key"):
        papers.build({**SECTIONS["gate in PAG"], "gate": gate})
