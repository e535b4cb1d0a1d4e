"""Gated bottlenecks: eq. 2 of PAG transcribed in NumPy, sparse execution, gradients."""

from __future__ import annotations

from functools import cache, partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.routing import Routing
from dynpix_jax.nn.gates import COMPUTE, SKIP
from dynpix_jax.nn.residual import Bottleneck, ResidualSpec
from dynpix_jax.papers.pag.layers import GatedBlock, SkippedBlock
from dynpix_jax.papers.pag.sparsity import layer_rate_loss

SCOPES = ("conv3x3", "residual")
DENSE, SPARSE = Routing(), Routing(mode="sparse")


def spec(strides: int = 1, dilation: int = 1, rectified: bool = False) -> ResidualSpec:
    in_features = 8 if strides == 2 else 12
    return ResidualSpec(
        "res3_1",
        "res3",
        in_features,
        3,
        12,
        strides,
        dilation,
        stage_dilation=dilation,
        frozen_norm=True,
        rectified=rectified,
    )


def features(rng: np.random.Generator, shape: tuple[int, ...], rectified: bool = False) -> np.ndarray:
    """Of both signs, or what a ReLU hands on but for its exact zeros, where derivatives are a convention."""
    values = rng.normal(size=shape).astype(np.float32)
    return np.abs(values) + np.float32(1e-3) if rectified else values


def randomised(variables, seed: int = 0):
    """Every leaf at random, moments and scales included; variances and scales positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        positive = path[-1].key in ("var", "scale")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, 0.4, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


@cache
def block(kind, strides: int = 1, dilation: int = 1, rectified: bool = False):
    """A block and random variables for it; kind: a gate_scope or "layer"."""
    given = spec(strides, dilation, rectified)
    plain = Bottleneck(given)
    module = SkippedBlock(plain) if kind == "layer" else GatedBlock(plain, gate_scope=kind)
    x = jnp.zeros((1, 4, 4, module.block.spec.in_features))
    return module, randomised(jax.eval_shape(lambda key: module.init(key, x, DENSE), jax.random.key(0)))


@cache
def forward(kind, routing=DENSE, strides: int = 1, dilation: int = 1):
    """(variables, x, in_force) -> (O, mask), compiled."""
    module, _ = block(kind, strides, dilation)

    @jax.jit
    def run(variables, x, in_force):
        out, told = module.apply(variables, x, routing, in_force=in_force)
        return out, told.mask

    return run


def with_bias(variables, value: float):
    """All gates pushed open (large value) or shut."""
    gate = variables["params"]["gate"]
    bias = jnp.zeros(2).at[COMPUTE].set(value)
    return {
        **variables,
        "params": {**variables["params"], "gate": {"logits": {**gate["logits"], "bias": bias}}},
    }


def numpy_block(variables, x, strides, dilation, scope):
    """Eq. 2, position by position, in float64."""
    params, stats = jax.tree.map(
        lambda a: np.asarray(a, np.float64), (variables["params"], variables["batch_stats"])
    )
    x = np.asarray(x, np.float64)

    def norm(y, name):
        p, s = params[name], stats[name]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def relu(y):
        return np.maximum(y, 0)

    seen = x[:, ::strides, ::strides]
    X = relu(norm(seen @ params["conv1"]["kernel"][0, 0], "bn1"))
    logits = seen @ params["gate"]["logits"]["kernel"][0, 0] + params["gate"]["logits"]["bias"]
    G = logits[..., COMPUTE] > logits[..., SKIP]
    shortcut = (
        norm(seen @ params["projection"]["kernel"][0, 0], "projection_bn") if "projection" in params else x
    )
    out = np.zeros_like(shortcut)
    for b, i, j in np.ndindex(G.shape):
        mixture = X[b, i, j]
        if G[b, i, j]:
            total = np.zeros(X.shape[-1])
            for u, v in np.ndindex(3, 3):
                row, col = i + (u - 1) * dilation, j + (v - 1) * dilation
                if 0 <= row < X.shape[1] and 0 <= col < X.shape[2]:
                    total += X[b, row, col] @ params["conv2"]["kernel"][u, v]
            mixture = relu(norm(total, "bn2"))
        z = norm(mixture @ params["conv3"]["kernel"][0, 0], "bn3")
        if scope == "residual" and not G[b, i, j]:
            z = 0.0
        out[b, i, j] = relu(shortcut[b, i, j] + z)
    return out, G


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("strides", "dilation"), [(1, 2), (2, 1)])
def test_equals_equation_2(scope, strides, dilation):
    module, variables = block(scope, strides, dilation)
    x = features(np.random.default_rng(1), (2, 7, 9, module.block.spec.in_features))
    expected, gates = numpy_block(variables, x, strides, dilation, scope)
    assert 0.1 < gates.mean() < 0.9
    for routing in (DENSE, SPARSE):
        out, mask = forward(scope, routing, strides, dilation)(variables, jnp.asarray(x), True)
        np.testing.assert_array_equal(mask, gates)
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_open_gates_give_the_plain_bottleneck(scope):
    _, variables = block(scope)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 5, 6, 12)), jnp.float32)
    plain = {name: {k: v for k, v in tree.items() if k != "gate"} for name, tree in variables.items()}
    expected = jax.jit(Bottleneck(spec()).apply)(plain, x)
    out, mask = forward(scope)(with_bias(variables, 1e3), x, True)
    np.testing.assert_array_equal(mask, np.ones((1, 5, 6)))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    # A gate that is not in force is open whatever it says, and says so.
    out, mask = forward(scope)(with_bias(variables, -1e3), x, False)
    np.testing.assert_array_equal(mask, np.ones((1, 5, 6)))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@cache
def value_and_gradients(scope, mode, rectified):
    module, _ = block(scope, rectified=rectified)

    @partial(jax.jit)
    def run(params, stats, x, weights):
        def loss(params, x):
            out, told = module.apply({"params": params, "batch_stats": stats}, x, Routing(mode=mode))
            return (out * weights).sum(), (out, told.mask)

        (_, (out, mask)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return out, mask, gradients

    return run


@hypothesis.given(
    scope=st.sampled_from(SCOPES),
    shape=st.sampled_from([(1, 1, 1), (3, 5, 7)]),
    gates=st.sampled_from(["empty", "full", "random"]),
    rectified=st.booleans(),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(max_examples=16)
def test_sparse_equals_dense_in_values_and_gradients(scope, shape, gates, rectified, seed):
    """Evaluation takes the arg-max: gates are fixed, and both modes have the same derivatives in all else."""
    _, variables = block(scope)
    variables = randomised(variables, seed)
    if gates != "random":
        variables = with_bias(variables, 1e3 if gates == "full" else -1e3)
    rng = np.random.default_rng(seed)
    x = jnp.asarray(features(rng, (*shape, 12), rectified))
    weights = jnp.asarray(rng.normal(size=(*shape, 12)), jnp.float32)
    dense, sparse = (
        value_and_gradients(scope, mode, rectified)(variables["params"], variables["batch_stats"], x, weights)
        for mode in ("dense", "sparse")
    )
    if gates != "random":
        assert (np.asarray(dense[1]) == (gates == "full")).all()
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4, rtol=2e-4), sparse, dense)


def test_training_draws_gates_and_reaches_their_logits():
    module, variables = block("conv3x3")
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 16, 16, 12)), jnp.float32)
    params = with_bias(jax.tree.map(lambda a: a, variables), float(np.log(0.7 / 0.3)))["params"]
    params["gate"]["logits"]["kernel"] = jnp.zeros_like(params["gate"]["logits"]["kernel"])

    def run(params, key, temperature):
        out, told = module.apply(
            {**variables, "params": params},
            x,
            Routing(train=True, temperature=temperature),
            rngs={"gumbel": key},
        )
        return out.sum(), told.mask

    grad = jax.jit(jax.grad(run, has_aux=True))
    gradients, mask = grad(params, jax.random.key(0), 1.0)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert abs(float(mask.mean()) - 0.7) < 0.05  # 1024 draws: three standard deviations are 0.043
    assert np.abs(gradients["gate"]["logits"]["kernel"]).max() > 0
    _, same = grad(params, jax.random.key(0), 0.1)
    np.testing.assert_array_equal(same, mask)  # the sample does not depend on the temperature
    assert (grad(params, jax.random.key(1), 1.0)[1] != mask).any()


def test_a_stride_on_the_3x3_cannot_be_gated():
    module = GatedBlock(Bottleneck(ResidualSpec("res3_1", "res3", 8, 3, 12, strides=2, splits=False)))
    with pytest.raises(ValueError, match="res3_1: X and Y of eq"):
        module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), DENSE)


def test_sparse_training_needs_frozen_norms():
    module = GatedBlock(Bottleneck(ResidualSpec("res2_2", "res2", 12, 3, 12, frozen_norm=False)))
    routing = Routing(train=True, mode="sparse")
    with pytest.raises(ValueError, match="train with frozen norms"):
        module.init(
            {"params": jax.random.key(0), "gumbel": jax.random.key(1)}, jnp.zeros((1, 4, 4, 12)), routing
        )


def test_layer_skipping():
    """O = ReLU(I + g Z) per image, in both modes, whether no, some or all images want the block."""
    _, variables = block("layer")
    x = jnp.asarray(np.random.default_rng(4).normal(size=(6, 3, 5, 12)), jnp.float32)
    gate, stats = variables["params"]["gate"], variables["batch_stats"]["gate"]["bn1"]
    pooled = np.asarray(x).mean((1, 2)) @ gate["conv1"]["kernel"][0, 0]
    normed = (pooled - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * gate["bn1"]["scale"] + gate["bn1"][
        "bias"
    ]
    logits = np.maximum(normed, 0) @ gate["conv2"]["kernel"][0, 0]
    lead = logits[:, COMPUTE] - logits[:, SKIP]
    for threshold in (lead.min() - 1, np.median(lead), lead.max() + 1):
        variables["params"]["gate"]["conv2"]["bias"] = jnp.asarray([threshold, 0.0], jnp.float32)
        check_layer_skipping(variables, x, lead > threshold)


def check_layer_skipping(variables, x, keep):
    out, mask = forward("layer")(variables, x, True)
    np.testing.assert_array_equal(mask, np.broadcast_to(keep[:, None, None], (6, 3, 5)))
    plain = {name: {k: v for k, v in tree.items() if k != "gate"} for name, tree in variables.items()}
    full = jax.jit(Bottleneck(spec()).apply)(plain, x)
    np.testing.assert_allclose(out, np.where(keep[:, None, None, None], full, jax.nn.relu(x)), atol=1e-5)
    sparse, sparse_mask = forward("layer", SPARSE)(variables, x, True)
    np.testing.assert_array_equal(sparse_mask, mask)
    np.testing.assert_allclose(sparse, out, atol=1e-5)


def test_layer_rate_loss_by_hand():
    """Of three images the last is padding; of three layers the first is not inserted yet."""
    rates = [jnp.asarray(rate) for rate in (0.1, 0.5, 0.9)]
    relaxed = [jnp.asarray(share) for share in ([1.0, 1.0, 1.0], [0.2, 0.4, 0.9], [1.0, 1.0, 0.0])]
    valid, in_force = jnp.array([True, True, False]), jnp.array([False, True, True])

    def loss(relaxed, in_force=in_force):
        return layer_rate_loss(rates, relaxed, jnp.asarray(0.7), valid=valid, in_force=in_force)

    value, gradients = jax.value_and_grad(loss)(relaxed)
    np.testing.assert_allclose(value, ((0.7 - 0.5) ** 2 + (0.7 - 0.9) ** 2) / 2, rtol=1e-6)
    # d/d share = -(rho - rate) * 2 / 2 layers, split over the two valid images.
    expected = [[0, 0, 0], [-0.1, -0.1, 0], [0.1, 0.1, 0]]
    np.testing.assert_allclose(jnp.stack(gradients), expected, atol=1e-6)
    assert float(loss(relaxed, jnp.zeros(3, bool))) == 0.0


def test_layer_gate_remembers_its_rate():
    """A moving average of softmax(logits / temperature) over training images; evaluation leaves it alone."""
    module, variables = block("layer")
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3, 5, 12)), jnp.float32)
    routing = Routing(train=True, temperature=0.5)
    (_, told), updates = module.apply(
        variables, x, routing, rngs={"gumbel": jax.random.key(0)}, mutable=["batch_stats"]
    )
    relaxed = told.probability
    assert relaxed.shape == (4,)
    before = variables["batch_stats"]["gate"]["rate"]
    expected = 0.99 * before + 0.01 * relaxed.mean()
    np.testing.assert_allclose(updates["batch_stats"]["gate"]["rate"], expected, rtol=1e-5)
    _, updates = module.apply(variables, x, DENSE, mutable=["batch_stats"])
    np.testing.assert_array_equal(updates["batch_stats"]["gate"]["rate"], before)
