"""Every system in bfloat16: what is computed in which dtype, and how near the results are to float32's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import System
from tests.one_step import QUICKLY
from tests.tiny_systems import ANYTIME, PERSPECTIVE

SIZE = (32, 32)
CLASSES = dict(task="segmentation", task_options=dict(classes=3))
SOLVER = dict(iterations=2, memory=2)
SECTIONS: dict[str, dict[str, Any]] = {
    "pag": dict(
        system="pag",
        task="boundaries",
        backbone=dict(depth=26, width=4, frozen_norm=False),
        head_features=4,
        drop_blocks=6,
        gate=dict(kind="pixel"),
        multipool=dict(blocks=("res2_2",), dilations=(0, 1, 2)),
    ),
    "pixelnet": dict(
        system="pixelnet",
        task="boundaries",
        backbone=dict(width=4),
        hypercolumn=dict(layers=("conv1_2", "conv2_2"), normalize="batch"),
        mlp=dict(hidden=(8,)),
        sampling=dict(pixels=40),
    ),
    "mdeq": dict(
        system="mdeq",
        **CLASSES,
        cell=dict(channels=(4, 8), groups=4, expansion=2, dropout=0.0),
        forward=SOLVER,
        backward=SOLVER,
    ),
    "astmt": dict(
        system="astmt",
        tasks=("segmentation",),
        task_options=dict(segmentation=dict(classes=3)),
        backbone=dict(name="mobilenetv2", width=0.2),
        decoder=dict(features=8),
    ),
    "perspective": PERSPECTIVE | dict(loops=0, depth={}, dropout=0.0, pooling=dict(signal="pred_depth")),
    "anytime": ANYTIME,
}
IN_FLOAT32 = {
    "pag": r".*gate/(logits|conv3)/.*",
    "perspective": r".*(resize|depth/classes|depth/log_depth).*",
    "mdeq": r".*resize.*",
    "anytime": r".*(resize|interpolation).*",
    "astmt": r".*resize.*",
    "pixelnet": r"(?!)",
}
"""Scopes of products of float32 maps: gates' logits, sums over neighbours, and what enlarges predictions."""


@cache
def built(name: str, compute_dtype: str) -> System:
    return papers.build({**SECTIONS[name], "compute_dtype": compute_dtype})


@cache
def batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (2, *SIZE)
    values = {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "valid": np.ones(2, bool),
        "segmentation": rng.integers(0, 3, shape),
        "boundaries": (rng.random(shape) < 0.2).astype(np.float32),
        "depth": rng.uniform(1.0, 5.0, shape).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, values)


def loss(system: System, variables: Any) -> Any:
    rngs = {name: jax.random.key(i) for i, name in enumerate(("gumbel", "dropout", "points"))}
    return system.loss(variables, batch(), rngs=rngs, controls=system.controls(jnp.zeros((), int), 10))


def products(program: Any) -> Iterator[Any]:
    """Convolutions and products of a program and of all that it calls."""
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: isinstance(leaf, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr),
        ):
            if isinstance(inner, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr):
                yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", SECTIONS)
def test_all_of_the_main_road_is_bfloat16(name):
    system = built(name, "bfloat16")
    variables = jax.eval_shape(system.init, jax.random.key(0), batch())
    system.check(variables)
    program, shapes = jax.make_jaxpr(lambda v: loss(system, v), return_shape=True)(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    counts = {"bfloat16": 0, "float32": 0}
    for equation in products(program.jaxpr):
        x, kernel = (given.aval for given in equation.invars[:2])
        assert x.dtype == kernel.dtype
        scope = str(equation.source_info.name_stack)
        # The convolution to one channel names no scope. Products of vectors: squeeze-and-excitation, solvers.
        if x.dtype == jnp.float32 and x.ndim == 4 and kernel.shape[-2:] != (4, 1) and "bhwt" not in scope:
            assert re.fullmatch(IN_FLOAT32[name], scope), scope
        counts[x.dtype.name] += 1
    assert counts["bfloat16"] > 5


SLOW = {"pag", "mdeq", "astmt", "perspective", "anytime"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SECTIONS]
)
def test_loss_and_gradients_are_near_those_of_float32(name):
    variables = jax.jit(built(name, "float32").init)(jax.random.key(0), batch())

    def run(compute_dtype: str) -> Any:
        system = built(name, compute_dtype)

        def of(params: Any) -> Any:
            return loss(system, {**variables, "params": params})

        step = jax.jit(jax.value_and_grad(of, has_aux=True)).lower(variables["params"])
        (value, _), gradients = step.compile(compiler_options=QUICKLY)(variables["params"])
        return value, gradients

    (exact, of_exact), (value, gradients) = run("float32"), run("bfloat16")
    np.testing.assert_allclose(value, exact, rtol=0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    vectors = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in (gradients, of_exact)]
    norms = [np.linalg.norm(vector) for vector in vectors]
    assert np.isfinite(norms[0])
    # The smallest maps of the others have four pixels: norms of so few values make much of a rounding.
    if name not in ("astmt", "anytime"):
        assert vectors[0] @ vectors[1] > 0.9 * norms[0] * norms[1]


def test_sparse_is_dense_to_rounding():
    system = built("pag", "bfloat16")
    variables = jax.jit(system.init)(jax.random.key(0), batch())
    rng = np.random.default_rng(1)
    names = jax.eval_shape(system.apply, variables, batch()["image"]).gates
    masks = {name: jnp.asarray(rng.random(mask.shape) < 0.5) for name, mask in names.items()}

    def run(**routing: Any) -> Any:
        apply = jax.jit(lambda v: system.apply(v, batch()["image"], {}, Routing(masks=masks, **routing)))
        outputs = apply.lower(variables).compile(compiler_options=QUICKLY)(variables)
        return np.asarray(outputs.predictions["boundaries"])

    dense, sparse = run(), run(mode="sparse", implementation="gather")
    assert dense.dtype == np.float32
    np.testing.assert_allclose(sparse, dense, atol=2**-6 * np.abs(dense).max())
