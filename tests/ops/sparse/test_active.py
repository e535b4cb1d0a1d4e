from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dynpix_jax import ops
from tests.ops.brute import output_size, window_at

RNG = np.random.default_rng(0)
one_or_two = st.sampled_from([(1, 1), (2, 2), (1, 2)])


def array(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@st.composite
def cases(draw):
    """(x, masks, geometry): odd sizes; an empty, a full and a random mask."""
    geometry = {
        "window": draw(st.sampled_from([(1, 1), (3, 3), (1, 3)])),
        "strides": draw(one_or_two),
        "dilation": draw(one_or_two),
    }
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (batch, *output_size((height, width), **geometry))
    masks = [
        np.zeros(shape, bool),
        np.ones(shape, bool),
        rng.random(shape) < draw(st.sampled_from([0.3, 0.7])),
    ]
    return rng.standard_normal((batch, height, width, 3)).astype(np.float32), masks, geometry


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.0, 0.4, 1.0]))
def test_active_set_lists_positions_in_order(batch, height, width, density):
    mask = np.random.default_rng(1).random((batch, height, width)) < density
    active = jax.jit(ops.active_set)(jnp.asarray(mask))
    expected = np.flatnonzero(mask)
    assert int(active.count) == len(expected)
    np.testing.assert_array_equal(active.indices[: len(expected)], expected)
    assert (active.indices[len(expected) :] == mask.size).all()
    assert active.shape == mask.shape
    assert active.indices.shape == (mask.size,)
    assert active.indices.dtype == active.count.dtype == jnp.int32


@settings(max_examples=10)
@given(cases(), st.sampled_from(["set", "update"]), st.sampled_from([None, 1, 4]))
def test_map_active_applies_fn_at_active_positions_only(case, combine, chunk):
    x, masks, geometry = case
    weights = RNG.standard_normal((*geometry["window"], 3, 2)).astype(np.float32)
    init = RNG.standard_normal((*masks[0].shape, 2)).astype(np.float32)

    @jax.jit
    def run(mask):
        def fn(windows, current=0.0):
            return jnp.tanh(jnp.einsum("nuvc,uvcd->nd", windows, weights)) + current**2

        active = ops.active_set(mask)
        return ops.map_active(fn, jnp.asarray(x), active, **geometry, init=init, combine=combine, chunk=chunk)

    for mask in masks:
        expected = init.copy()
        for b, i, j in zip(*np.nonzero(mask), strict=True):
            y = np.tanh(np.einsum("uvc,uvcd->d", window_at(x, b, i, j, **geometry), weights))
            expected[b, i, j] = y + (init[b, i, j] ** 2 if combine == "update" else 0)
        np.testing.assert_allclose(run(jnp.asarray(mask)), expected, atol=1e-4)


def dense_equivalent(fn, x, mask, window, dilation, strides, init, combine):
    """The same by shifting the whole input: differentiated by JAX, shares nothing with map_active."""
    rows, cols = (d * (k // 2) for d, k in zip(dilation, window, strict=True))
    padded = jnp.pad(x, ((0, 0), (rows, rows), (cols, cols), (0, 0)))
    height, width = mask.shape[1:]
    shifted = [
        padded[:, i * dilation[0] :, j * dilation[1] :][:, :: strides[0], :: strides[1]][:, :height, :width]
        for i in range(window[0])
        for j in range(window[1])
    ]
    windows = jnp.stack(shifted, 3).reshape(-1, *window, x.shape[-1])
    y = fn(windows).reshape(init.shape)
    return jnp.where(mask[..., None], y + (init**2 if combine == "update" else 0), init)


@settings(max_examples=5)
@given(cases(), st.sampled_from(["set", "update"]))
def test_gradients_equal_those_of_the_dense_computation(case, combine):
    x, masks, geometry = case
    shape, taps = masks[0].shape, geometry["window"][0] * geometry["window"][1]
    arguments = (jnp.asarray(x), array(*shape, 2), array(taps * 3, 2), array(2))
    upstream = array(*shape, 2)

    def sparse(fn, x, mask, init):
        return ops.map_active(fn, x, ops.active_set(mask), **geometry, init=init, combine=combine, chunk=4)

    def dense(fn, x, mask, init):
        return dense_equivalent(fn, x, mask, **geometry, init=init, combine=combine)

    def loss(apply):
        def value(x, init, weights, bias, mask):
            def fn(w, current=0.0):
                return jnp.tanh(w.reshape(w.shape[0], -1) @ weights + bias) ** 2 + current**2

            return (upstream * jnp.sin(apply(fn, x, mask, init))).sum()

        return jax.jit(jax.value_and_grad(value, (0, 1, 2, 3)))

    run, reference = loss(sparse), loss(dense)
    for mask in masks:
        (value, gradients), (expected_value, expected) = (
            f(*arguments, jnp.asarray(mask)) for f in (run, reference)
        )
        np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-4)
        for got, want in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_gradient_of_closed_over_weights_outside_jit():
    x, active = array(1, 4, 5, 3), ops.active_set(jnp.asarray(RNG.random((1, 4, 5)) < 0.5))

    def loss(weights):
        init = jnp.zeros((1, 4, 5, 2))
        return (
            ops.map_active(lambda w: w[:, 0, 0] @ weights, x, active, window=(1, 1), init=init) ** 2
        ).sum()

    weights = array(3, 2)
    rows = x.reshape(-1, 3)[active.indices[: int(active.count)]]
    np.testing.assert_allclose(jax.grad(loss)(weights), 2 * rows.T @ (rows @ weights), rtol=1e-4, atol=1e-5)


def test_one_function_with_changing_closure():
    # closure_convert caches on the function's identity: a second set of weights must not meet the first's.
    scale = {"value": jnp.float32(1)}

    def fn(windows):
        return windows[:, 0, 0] * scale["value"]

    def run(value, x):
        scale["value"] = value
        active = ops.active_set(jnp.ones((1, 2, 2), bool))
        return ops.map_active(fn, x, active, window=(1, 1), init=jnp.zeros_like(x))

    x = array(1, 2, 2, 3)
    for value in (2.0, 3.0):
        np.testing.assert_allclose(jax.jit(run)(jnp.float32(value), x), value * x, rtol=1e-6)
        np.testing.assert_allclose(
            jax.grad(lambda v: run(v, x).sum())(jnp.float32(value)), x.sum(), rtol=1e-5
        )


def test_integers_in_the_closure_have_no_gradient():
    @jax.jit
    def gradient(x, weights, column):
        def loss(x, weights):
            active = ops.active_set(jnp.ones((1, 2, 3), bool))
            init = jnp.zeros((1, 2, 3, 1))
            return ops.map_active(
                lambda w: w[:, 0, 0] @ weights[:, column][:, None], x, active, window=(1, 1), init=init
            ).sum()

        return jax.grad(loss, 1)(x, weights)

    x, weights = array(1, 2, 3, 4), array(4, 2)
    got = gradient(x, weights, jnp.int32(1))
    np.testing.assert_allclose(got[:, 1], x.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(got[:, 0], 0)


def test_runs_active_chunks_only():
    calls = []

    @jax.jit
    def run(x, mask):
        def fn(windows):
            jax.debug.callback(lambda: calls.append(None))
            return windows[:, 1, 1]

        return ops.map_active(fn, x, ops.active_set(mask), init=jnp.zeros_like(x), chunk=8)

    x = array(1, 8, 8, 2)
    for count, trips in [(0, 0), (1, 1), (8, 1), (9, 2), (33, 5), (64, 8)]:
        calls.clear()
        run(x, (jnp.arange(64) < count).reshape(1, 8, 8)).block_until_ready()
        jax.effects_barrier()
        assert len(calls) == trips, count
    assert run._cache_size() == 1


def test_backward_stores_no_windows_and_loops_over_active_chunks():
    x, mask, weights = array(1, 6, 6, 5), jnp.ones((1, 6, 6), bool), array(45, 2)

    def loss(x, weights):
        active = ops.active_set(mask)
        init = jnp.zeros((1, 6, 6, 2))
        return ops.map_active(lambda w: w.reshape(4, -1) @ weights, x, active, init=init, chunk=4).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, weights)
    assert (
        str(jaxpr).count("while[") == 2
    )  # forward and backward; "scan" would mean a trip count known in advance
    largest = max(v.aval.size for e in jaxpr.eqns for v in e.outvars)
    assert largest < 36 * 9 * 5


@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_values_at_inactive_positions_do_not_matter(poison):
    mask = np.ones((1, 3, 3), bool)
    mask[0, 0, 0] = mask[0, 2, 2] = False
    x = np.where(mask[..., None], 2.0, poison).astype(np.float32)

    def loss(x, weights):
        active = ops.active_set(jnp.asarray(mask))
        init = jnp.zeros((1, 3, 3, 1))
        # 7 positions in chunks of 4: one idle lane.
        return ops.map_active(
            lambda w: jnp.log(w[:, 0, 0]) * weights, x, active, window=(1, 1), init=init, chunk=4
        ).sum()

    grad_x, grad_weights = jax.grad(loss, (0, 1))(jnp.asarray(x), jnp.ones(1))
    np.testing.assert_allclose(grad_x[..., 0], np.where(mask, 0.5, 0.0))
    np.testing.assert_allclose(grad_weights, 7 * np.log(2), rtol=1e-6)


def test_idle_lanes_read_what_a_live_one_reads():
    mask = jnp.asarray([[[True, False, True, True]]])
    x = init = jnp.full((1, 1, 4, 1), 4.0)

    def loss(weight):
        def fn(windows, current):
            return jnp.sqrt(current * weight) + windows[:, 0, 0] / current

        # 3 positions in chunks of 2: the idle lane must not divide by zero, nor take the root's slope there.
        active = ops.active_set(mask)
        y = ops.map_active(fn, x, active, window=(1, 1), init=init, combine="update", chunk=2)
        return y.sum()

    value, slope = jax.value_and_grad(loss)(jnp.float32(1.0))
    np.testing.assert_allclose((value, slope), (3 * 3 + 4, 3 * 1.0), rtol=1e-6)


def test_bfloat16_sums_gradients_in_float32():
    x = jnp.ones((1, 20, 20, 2), jnp.bfloat16)
    active = ops.active_set(jnp.ones((1, 20, 20), bool))

    def loss(weights):
        y = ops.map_active(
            lambda w: w[:, 0, 0] @ weights, x, active, window=(1, 1), init=jnp.zeros_like(x), chunk=1
        )
        assert y.dtype == jnp.bfloat16
        return y.astype(jnp.float32).sum()

    # Adding 400 ones one at a time in bfloat16 would stop at 256.
    gradient = jax.grad(loss)(jnp.eye(2, dtype=jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), 400)


def test_vmap_with_different_masks():
    x, weights = array(3, 4, 5, 2), array(18, 3)
    mask = jnp.stack([jnp.zeros((4, 5), bool), jnp.ones((4, 5), bool), jnp.asarray(RNG.random((4, 5)) < 0.5)])

    def one(x, mask, weights):
        init = jnp.zeros((1, 4, 5, 3))
        return ops.map_active(
            lambda w: w.reshape(w.shape[0], -1) @ weights,
            x[None],
            ops.active_set(mask[None]),
            init=init,
            chunk=4,
        )[0]

    got = jax.vmap(one, (0, 0, None))(x, mask, weights)
    np.testing.assert_allclose(
        got, jnp.stack([one(a, m, weights) for a, m in zip(x, mask, strict=True)]), atol=1e-5
    )
    grads = jax.vmap(jax.grad(lambda *a: (one(*a) ** 2).sum(), (0, 2)), (0, 0, None))(x, mask, weights)
    for i in range(3):
        expected = jax.grad(lambda *a: (one(*a) ** 2).sum(), (0, 2))(x[i], mask[i], weights)
        for got_one, want in zip(grads, expected, strict=True):
            np.testing.assert_allclose(got_one[i], want, atol=1e-4)


def test_chunk_size_keeps_the_windows_in_cache():
    for channels in (3, 18, 64, 256, 512, 2048, 10000):
        for window in ((1, 1), (3, 3)):
            rows = ops.chunk_size(channels, window)
            assert 128 <= rows <= 4096
            size = rows * window[0] * window[1] * channels * 4 / 2**20
            assert 5.5 / 1.5 < size < 5.5 * 1.5 or (rows == 128 and size > 5) or (rows == 4096 and size < 6)
    sizes = [ops.chunk_size(channels, (3, 3)) for channels in (48, 64, 256, 512)]
    assert sizes == [4096, 2048, 512, 256]


@pytest.mark.parametrize("count", [0, 1, 127, 128, 255, 256, 257, 384, 385, 900])
@pytest.mark.parametrize(
    ("chunk", "loops"),
    [
        (256, 2),  # full chunks, then those of 128 positions
        (512, 1),  # 900 positions have one full chunk at most: all are of 128
    ],
)
def test_full_chunks_and_the_shorter_ones_of_the_rest_meet_every_position_once(chunk, loops, count):
    mask = (jnp.arange(900) < count)[np.random.default_rng(0).permutation(900)].reshape(1, 30, 30)
    x, init = array(1, 30, 30, 3), array(1, 30, 30, 3)

    def add(x, init, mask):
        active = ops.active_set(mask)
        update = dict(window=(1, 1), init=init, combine="update", chunk=chunk)
        return ops.map_active(lambda w, old: old + w[:, 0, 0], x, active, **update)

    expected = init + np.where(mask[..., None], x, 0)
    np.testing.assert_allclose(jax.jit(add)(x, init, mask), expected, rtol=1e-6)
    assert str(jax.make_jaxpr(add)(x, init, mask)).count("while[") == loops


def test_wrong_arguments_are_named():
    x, active, init = (
        jnp.zeros((1, 4, 4, 3)),
        ops.active_set(jnp.ones((1, 4, 4), bool)),
        jnp.zeros((1, 4, 4, 2)),
    )
    with pytest.raises(ValueError, match=r"mask must be bool \(B, H, W\), got float32 \(1, 4, 4\)"):
        ops.active_set(jnp.ones((1, 4, 4)))
    with pytest.raises(ValueError, match=r"must have shape \(1, 2, 2\).*got \(1, 4, 4\)"):
        ops.map_active(lambda w: w[:, 0, 0], x, active, strides=(2, 2), init=init)
    with pytest.raises(ValueError, match=r"init must have shape \(1, 4, 4, 'Cout'\), got \(1, 4, 5, 2\)"):
        ops.map_active(lambda w: w[:, 0, 0], x, active, init=jnp.zeros((1, 4, 5, 2)))
    with pytest.raises(ValueError, match=r"fn must map \(16, 3, 3, 3\) to \(16, 2\).*returns \(16, 3\)"):
        ops.map_active(lambda w: w[:, 0, 0], x, active, init=init)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        ops.map_active(lambda w: w[:, 0, 0], x, active, init=init, chunk=0)
    with pytest.raises(ValueError, match="combine must be 'set' or 'update', got 'max'"):
        ops.map_active(lambda w: w[:, 0, 0], x, active, init=init, combine="max")
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, C\)"):
        ops.map_active(lambda w: w[:, 0, 0], x[0], active, init=init)
