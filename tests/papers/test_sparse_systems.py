"""Every gated system by every implementation of the sparse engine: values and gradients are those of dense.

Pallas kernels are interpreted. The gates' masks are given where a system takes them.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones import resnet
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import variable_shapes
from dynpix_jax.ops.sparse import ImplementationUnavailable, interpreted
from tests.tiny_systems import ANYTIME, PERSPECTIVE

SIZE = (33, 41)
# The GPU's kernel multiplies halves in bfloat16, and a gradient jumps where a ReLU's input is rounded across
# 0. With these images none is so near to 0.
IMAGES = np.random.default_rng(5).integers(0, 256, (2, *SIZE, 3), np.uint8)
IMPLEMENTATIONS = (None, "masked", "gather", "pallas_tpu", "pallas_gpu")
RESNET = dict(depth=26, width=4)
PAG = dict(system="pag", task="boundaries", backbone=RESNET, head_features=4, drop_blocks=6)
SECTIONS = {
    "pag, released": PAG | dict(gate=dict(kind="pixel", scope="conv3x3")),
    "pag, residual": PAG | dict(gate=dict(kind="pixel", scope="residual")),
    # Its blocks have no ReLU at the end: their inputs are of both signs.
    "pag on MobileNet": PAG
    | dict(
        backbone=dict(name="mobilenetv2", se=False, width=0.2),
        gate=dict(kind="pixel", scope="residual"),
        drop_blocks=14,
    ),
    "pag, layers": PAG | dict(gate=dict(kind="layer")),
    "multipool": PAG | dict(multipool=dict(blocks=("res2_2",), dilations=(0, 1, 2))),
    "perspective": PERSPECTIVE | dict(loops=0, depth={}, pooling=dict(gate="argmax")),
    "anytime": ANYTIME | dict(exits=(3, 4)),
}
REFUSED = {
    ("pag on MobileNet", "pallas_tpu"): "this one is depthwise; these can: masked, gather",
    ("pag on MobileNet", "pallas_gpu"): "this one is depthwise; these can: masked, gather",
    ("pag, layers", "pallas_tpu"): "whole images, where no kernel saves anything; these can: masked, gather",
    ("pag, layers", "pallas_gpu"): "whole images, where no kernel saves anything; these can: masked, gather",
}


@pytest.fixture(scope="module", autouse=True)
def few_blocks():
    """A ResNet of one block a stage stands in for ResNet-18."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet._BLOCKS, 18, (1, 1, 1, 1))
        yield


@cache
def built(name: str):
    """A system, random variables, and masks for its gates."""
    system = papers.build(SECTIONS[name])
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path.endswith("lam"):
            return jnp.float32(rng.uniform(0.7, 3.0))
        if path.endswith(("var", "scale")):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    shapes = variable_shapes(system)
    gates = jax.eval_shape(system.apply, shapes, jnp.asarray(IMAGES)).gates
    masks = {gate: rng.random(mask.shape) < 0.5 for gate, mask in gates.items()}
    if name == "pag, layers":
        masks = {
            gate: np.zeros_like(mask) | (index % 2 == 0) for index, (gate, mask) in enumerate(masks.items())
        }
    return system, map_named(draw, shapes), masks


@cache
def values_and_gradients(name: str, mode: str, implementation: str | None):
    """Predictions, and gradients of all parameters for a random direction of the predictions."""
    system, variables, masks = built(name)
    routing = Routing(mode=mode, masks=masks, implementation=implementation)

    # Arguments rather than constants, which would be folded while the program is compiled.
    def loss(params, others, images, routing):
        outputs = system.apply({**others, "params": params}, images, {}, routing)
        rng = np.random.default_rng(2)
        directions = [rng.normal(size=leaf.shape) for leaf in jax.tree.leaves(outputs.predictions)]
        total = sum(
            (d * p).sum() for d, p in zip(directions, jax.tree.leaves(outputs.predictions), strict=True)
        )
        return total, outputs.predictions

    others = {name: tree for name, tree in variables.items() if name != "params"}
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, predictions), gradients = run(variables["params"], others, IMAGES, routing)
    return predictions, gradients


GATHERED = ("pag, residual", "pag, layers", "multipool", "perspective")
"""Systems for which no name is ``gather`` on a CPU, as for "pag, released": their chains have several layers
each, none of which is cheap everywhere (Winograd, depthwise), or they skip layers of whole images.
"""


def cases():
    """All pairs; a whole HRNet takes minutes to compile, its parts have their tests in tests/ops, and what it
    predicts has its own in test_anytime.
    """
    for name in SECTIONS:
        for implementation in IMPLEMENTATIONS:
            twice = implementation is None and name in GATHERED
            marks = [pytest.mark.slow] if name == "anytime" or twice else []
            yield pytest.param(name, implementation, marks=marks, id=f"{name}-{implementation}")


@pytest.mark.parametrize(("name", "implementation"), list(cases()))
def test_sparse_equals_dense(name, implementation):
    with interpreted():
        if message := REFUSED.get((name, implementation)):
            with pytest.raises(ImplementationUnavailable, match=message):
                values_and_gradients(name, "sparse", implementation)
            return
        sparse = values_and_gradients(name, "sparse", implementation)
    dense = values_and_gradients(name, "dense", None)
    for found, expected in zip(sparse, dense, strict=True):
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4 * scale)
        jax.tree.map(close, found, expected)


def test_a_kernel_needs_its_device():
    system, variables, masks = built("pag, residual")
    routing = Routing(mode="sparse", masks=masks, implementation="pallas_tpu")
    with pytest.raises(
        ImplementationUnavailable, match=r"needs tpu, the platform is .*; these can: masked, gather"
    ):
        jax.eval_shape(lambda variables: system.apply(variables, IMAGES, {}, routing), variables)
