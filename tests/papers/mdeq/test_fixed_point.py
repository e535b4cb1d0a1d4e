"""Fixed points against SciPy and dense matrices, implicit gradients against differences, failing searches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from dynpix_jax.core.sections import unread
from dynpix_jax.papers.mdeq.fixed_point import (
    ImplicitConfig,
    SolverConfig,
    advance,
    fixed_point,
    flatten,
    jacobian_penalty,
    solve,
    start,
    stats,
    unflatten,
    unrolled,
)
from tests.one_step import QUICKLY

METHODS = ("broyden", "anderson")
SIZE = 12
# Everything here runs a few times: it is not worth optimizing.
jit = partial(jax.jit, compiler_options=QUICKLY)


def config(method: str, **changes) -> SolverConfig:
    options = dict(method=method, iterations=60, tolerance=1e-10, memory=60 if method == "broyden" else 6)
    return SolverConfig(**(options | changes))


def problem(radius: float = 0.8, batch: int = 3, seed: int = 0):
    """(matrices of that spectral radius, offsets), float64."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(batch, SIZE, SIZE))
    a *= radius / np.abs(np.linalg.eigvals(a)).max(1)[:, None, None]
    return a, rng.normal(size=(batch, SIZE))


def linear(theta, z):
    return jnp.einsum("bij,bj->bi", theta[0], z) + theta[1]


def mild(theta, z):
    """Nonlinear, with a Jacobian that depends on z."""
    return jnp.tanh(jnp.einsum("bij,bj->bi", theta[0], z)) + 0.1 * jnp.sin(z) + theta[1]


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def start_at(theta):
    return jnp.zeros((len(theta[1]), SIZE))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", [linear, mild])
def test_agrees_with_scipy(f, method):
    theta = problem(0.8 if f is linear else 0.7)

    def residual(v, a, offset):
        product = a @ v
        return (product if f is linear else np.tanh(product) + 0.1 * np.sin(v)) + offset - v

    z, how = jit(lambda theta: solve(partial(f, theta), start_at(theta), config(method)))(theta)
    for b in range(3):
        root = scipy.optimize.root(residual, np.zeros(SIZE), (theta[0][b], theta[1][b]), tol=1e-12)
        assert np.abs(root.fun).max() < 1e-10
        np.testing.assert_allclose(z[b], root.x, atol=1e-8)
    assert how.converged.all()
    assert not how.diverged.any()
    assert (np.asarray(how.error) <= 1e-10).all()
    assert (how.iterations < 60).all()


def test_broyden_is_that_of_dense_matrices():
    """Good Broyden on the inverse Jacobian, written with matrices (Nocedal and Wright, section 11.1)."""
    theta = problem(batch=1)
    f = partial(mild, theta)
    state = jit(lambda: start(f, start_at(theta), config("broyden")))()

    def residual(z):
        return np.tanh(theta[0][0] @ z) + 0.1 * np.sin(z) + theta[1][0] - z

    inverse, z = -np.eye(SIZE), np.zeros(SIZE)
    g = residual(z)
    step = jit(lambda state, until: advance(f, state, config("broyden"), until))
    for n in range(1, 8):
        state = step(state, n)
        old, old_g = z, g
        z = z - inverse @ g
        np.testing.assert_allclose(state.z[0], z, rtol=1e-9)
        g = residual(z)
        dz, dg = z - old, g - old_g
        inverse = inverse + np.outer(dz - inverse @ dg, dz @ inverse) / (dz @ inverse @ dg)
        np.testing.assert_allclose(state.trace[n, 0], np.sqrt(np.mean(g**2)), rtol=1e-9)


def test_anderson_cancels_the_residuals_best():
    """Of a linear problem, mixing m + 1 iterates is what least squares says (Walker and Ni, 2011)."""
    theta = problem(batch=1)
    f, options = partial(linear, theta), config("anderson", memory=4, regularization=1e-14)
    state = jit(lambda: start(f, start_at(theta), options))()
    states = [state]
    step = jit(lambda state, until: advance(f, state, options, until))
    for n in range(1, 6):
        state = step(state, n)
        states.append(state)
        z = np.array([one.z[0] for one in states[-4:]])
        g = np.array([one.residual[0] for one in states[-4:]])
        gamma = np.linalg.lstsq((g[1:] - g[:-1]).T, g[-1], rcond=None)[0]
        mixed = z[-1] + g[-1] - gamma @ (z[1:] - z[:-1] + g[1:] - g[:-1])
        np.testing.assert_allclose(state.z[0] + state.step[0], mixed, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_implicit_gradient(method):
    """Equals that of 300 unrolled applications, and finite differences."""
    theta, weights = problem(0.6, batch=2), np.random.default_rng(1).normal(size=(2, SIZE))

    def implicit(theta):
        z, _ = fixed_point(mild, theta, start_at(theta), config(method), config(method))
        return jnp.sum(weights * jnp.sin(z))

    def through(theta):
        return jnp.sum(weights * jnp.sin(unrolled(partial(mild, theta), start_at(theta), 300)))

    found = jit(jax.grad(implicit))(theta)
    for a, b in zip(found, jit(jax.grad(through))(theta), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    value, rng = jit(implicit), np.random.default_rng(2)
    for _ in range(3):
        along = [rng.normal(size=part.shape) for part in theta]
        ahead, behind = (
            value(tuple(part + sign * 1e-5 * d for part, d in zip(theta, along, strict=True)))
            for sign in (1, -1)
        )
        slope = sum(jnp.vdot(g, d) for g, d in zip(found, along, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-3)


def mild_jacobian(a, z):
    return (1 - np.tanh(a @ z) ** 2)[:, None] * a + np.diag(0.1 * np.cos(z))


@pytest.mark.parametrize("start_of_gradient", ["zero", "loss"])
@pytest.mark.parametrize("gives", ["applied", "found"])
def test_implicit_passes_as_the_release_does(gives, start_of_gradient):
    """As released: f is applied once more to what was found; the search for the gradient starts from 0.

    Far from the fixed point, and with few iterations of the gradient's search, these differ; NumPy has both.
    """
    (a, offset), n = problem(0.6, batch=1), 4
    options = config("broyden", iterations=2)
    implicit = ImplicitConfig(gives, start_of_gradient)

    def value(theta):
        start_z = start_at((a, offset))
        z, _ = fixed_point(mild, theta, start_z, options, config("broyden", iterations=n), implicit)
        return jnp.sin(z).sum(), z

    (_, z), (by_a, by_offset) = jit(jax.value_and_grad(value, has_aux=True))((a, offset))
    found, _ = solve(partial(mild, (a, offset)), start_at((a, offset)), options)
    found = np.asarray(found[0])
    given = np.asarray(mild((a, offset), found[None])[0]) if gives == "applied" else found
    np.testing.assert_allclose(z[0], given, rtol=1e-9)
    assert np.abs(given - mild((a, offset), given[None])[0]).max() > 1e-3
    jacobian, loss = mild_jacobian(a[0], given), np.cos(given)

    def residual(u):
        return loss + jacobian.T @ u - u

    begin = np.zeros(SIZE) if start_of_gradient == "zero" else loss
    u = dense_broyden(residual, begin, n)
    assert np.abs(residual(u)).max() > 1e-6
    np.testing.assert_allclose(by_offset[0], u, rtol=1e-7)
    slope = u * (1 - np.tanh(a[0] @ found) ** 2)
    np.testing.assert_allclose(by_a[0], np.outer(slope, found), rtol=1e-7)


def dense_broyden(residual, z, iterations, memory=None, forgets="before"):
    """The iterate of the least residual, by terms of the inverse Jacobian that are kept in a list."""
    terms, g = [], residual(z)
    visited = [(np.linalg.norm(g), z)]
    step = g
    for _ in range(iterations):
        old, old_g = z, g
        z = z + step
        g = residual(z)
        visited.append((np.linalg.norm(g), z))
        if forgets == "before" and len(terms) == memory:
            terms = terms[1:]
        inverse = sum((np.outer(left, right) for left, right in terms), -np.eye(len(z)))
        dz, dg = z - old, g - old_g
        right = dz @ inverse
        left = (dz - inverse @ dg) / (right @ dg)
        if len(terms) == memory:
            terms = terms[1:]
        terms.append((left, right))
        step = -sum((np.outer(left, right) for left, right in terms), -np.eye(len(z))) @ g
    return min(visited, key=lambda one: one[0])[1]


@pytest.mark.parametrize("forgets", ["before", "after"])
def test_when_the_oldest_term_is_forgotten(forgets):
    """Broyden's full memory: the release computes with the oldest of its 27 terms before it overwrites it."""
    (a, offset), iterations = problem(batch=1), 6
    options = config("broyden", iterations=iterations, memory=2, forgets=forgets)
    z, _ = jit(lambda: solve(partial(mild, (a, offset)), start_at((a, offset)), options))()

    def residual(z):
        return np.tanh(a[0] @ z) + 0.1 * np.sin(z) + offset[0] - z

    both = {
        name: dense_broyden(residual, np.zeros(SIZE), iterations, 2, name) for name in ("before", "after")
    }
    assert np.abs(both["before"] - both["after"]).max() > 1e-3
    np.testing.assert_allclose(z[0], both[forgets], rtol=1e-9)
    roomy = config("broyden", forgets="after")
    assert [path for path, _, _ in unread(roomy)] == ["forgets"]


def test_a_batch_may_stop_as_one():
    """Plain iteration of a z + 1 has residuals a^n; the release stops by the norm over all images."""
    factors, tolerance = np.array([0.5, 0.8]), 1e-3
    together = config("anderson", memory=1, tolerance=tolerance, stops="batch")
    z, how = jit(lambda: solve(lambda z: factors[:, None] * z + 1, jnp.zeros((2, 4)), together))()
    errors = [np.sqrt((factors ** (2 * n)).mean()) for n in range(60)]
    steps = next(n for n, error in enumerate(errors) if error <= tolerance)
    np.testing.assert_array_equal(how.iterations, [steps, steps])
    np.testing.assert_allclose(how.trace[: steps + 1].T, [errors[: steps + 1]] * 2, rtol=1e-9)
    np.testing.assert_allclose(z[:, 0], (1 - factors**steps) / (1 - factors), rtol=1e-9)
    relative = replace(together, error="relative", iterations=1)
    _, how = jit(lambda: solve(lambda z: factors[:, None] * z + 1, jnp.zeros((2, 4)), relative))()
    # After one iteration z = 1, f = a + 1.
    np.testing.assert_allclose(how.error, np.linalg.norm(factors) / np.linalg.norm(1 + factors), rtol=1e-9)


@pytest.mark.parametrize("method", ["broyden", pytest.param("anderson", marks=pytest.mark.slow)])
def test_vmap_is_one_by_one(method):
    theta = [np.stack([part, part[::-1]]) for part in problem(0.6, batch=2)]
    options = config(method, iterations=8)

    def gradient(theta):
        def total(theta):
            return fixed_point(mild, theta, start_at(theta), options, options)[0].sum()

        return jax.grad(total)(theta)

    together, alone = jit(jax.vmap(gradient))(theta), jit(gradient)
    for n in range(2):
        for a, b in zip(together, alone([part[n] for part in theta]), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-9, atol=1e-12)


@cache
def search(method: str):
    return jit(lambda theta: solve(partial(mild, theta), start_at(theta), config(method, tolerance=1e-4)))


@given(st.integers(0, 1000), st.sampled_from(METHODS))
def test_an_image_does_not_see_the_others(seed, method):
    theta = problem(0.9, seed=seed)
    z, how = search(method)(theta)
    for b in range(3):
        one = [part[b : b + 1] for part in theta]
        alone, ended = search(method)(tuple(one))
        np.testing.assert_allclose(z[b], alone[0], atol=1e-9)
        assert how.iterations[b] == ended.iterations[0]
        z_b = np.asarray(z[b])
        residual = np.tanh(one[0][0] @ z_b) + 0.1 * np.sin(z_b) + one[1][0] - z_b
        np.testing.assert_allclose(how.error[b], np.sqrt(np.mean(residual**2)), rtol=1e-6)
        assert how.error[b] == np.nanmin(how.trace[:, b])
        # The trace ends where the image's search does.
        assert np.isfinite(how.trace[:, b]).sum() == how.iterations[b] + 1


def test_divergence_stops_and_the_best_is_returned():
    """The residual of z -> 10 z + 1 without memory grows tenfold: above 10**6 after 7 iterations."""
    factor = jnp.array([[10.0], [0.5], [10.0]])
    plain = config("anderson", memory=1, tolerance=1e-6, iterations=40)

    def f(z):
        # The third is not a number from 50 on.
        return jnp.where((jnp.arange(3)[:, None] == 2) & (z > 50), jnp.nan, factor * z + 1)

    z, how = jit(lambda: solve(f, jnp.zeros((3, 4)), plain))()
    np.testing.assert_array_equal(how.diverged, [True, False, True])
    np.testing.assert_array_equal(how.converged, [False, True, False])
    np.testing.assert_array_equal(how.iterations, [7, 20, 3])
    np.testing.assert_array_equal(z[0], np.zeros(4))
    np.testing.assert_array_equal(z[2], np.zeros(4))
    np.testing.assert_allclose(z[1], 2.0, atol=1e-5)
    # Searches that cannot begin.
    z, how = jit(lambda: solve(lambda z: z * jnp.nan, jnp.zeros((1, 4)), plain))()
    assert how.diverged[0]
    assert how.iterations[0] == 0
    np.testing.assert_array_equal(z, np.zeros((1, 4)))


def test_gradient_falls_back_where_its_search_diverges():
    """At z = 0 of z -> 3 z + t the search without memory diverges; what is left is one application's."""
    plain = config("anderson", memory=1)

    def value(t):
        return fixed_point(lambda t, z: 3 * z + t, t, jnp.zeros((1, 2)), plain, plain)[0].sum()

    np.testing.assert_allclose(jit(jax.grad(value))(jnp.zeros((1, 2))), np.ones((1, 2)))


def test_a_start_that_is_the_fixed_point():
    theta = problem()
    z = np.linalg.solve(np.eye(SIZE) - theta[0], theta[1][..., None])[..., 0]
    options = config("broyden", tolerance=1e-9)
    again, how = jit(lambda z: solve(partial(linear, theta), z, options))(z)
    np.testing.assert_array_equal(again, z)
    np.testing.assert_array_equal(how.iterations, np.zeros(3))
    relative = replace(options, error="relative")
    _, how = jit(lambda: solve(lambda z: 0 * z, jnp.zeros((1, 3)), relative))()
    assert how.converged[0]
    assert how.error[0] == 0


def test_relative_error():
    """Of f = 0.5 z + 1: z = 1 after one iteration, f = 1.5, and half a unit between them."""
    options = config("anderson", memory=1, iterations=1, error="relative")
    _, how = jit(lambda: solve(lambda z: 0.5 * z + 1, jnp.zeros((1, 4)), options))()
    np.testing.assert_allclose(how.trace[:, 0], [1, 1 / 3])


def test_limited_memory_still_converges():
    theta = problem(0.5)
    options = config("broyden", memory=4, tolerance=1e-8)
    z, how = jit(lambda: solve(partial(linear, theta), start_at(theta), options))()
    assert how.converged.all()
    exact = np.linalg.solve(np.eye(SIZE) - theta[0], theta[1][..., None])[..., 0]
    np.testing.assert_allclose(z, exact, atol=1e-6)


def test_a_search_goes_on_where_it_stopped():
    theta = problem()
    f, options = partial(mild, theta), config("broyden", iterations=9, tolerance=0.0)
    state = jit(lambda: start(f, start_at(theta), options))()
    step = jit(lambda state, until: advance(f, state, options, until))
    for until in (2, 5, 100):
        state = step(state, until)
    whole, how = jit(lambda: solve(f, start_at(theta), options))()
    np.testing.assert_allclose(state.best, whole, rtol=1e-12)
    np.testing.assert_array_equal(stats(state).iterations, how.iterations)
    assert state.iteration == 9


def test_memory_of_the_gradient_does_not_grow_with_the_iterations():
    kernel, image = np.ones((3, 3, 4, 4)), np.ones((1, 16, 16, 4))

    def f(theta, z):
        maps = unflatten(z, image)
        y = jax.lax.conv_general_dilated(
            maps, theta[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return flatten(jnp.tanh(y) + theta[1])

    def implicit(iterations, theta):
        options = config("broyden", iterations=iterations, memory=4)
        return fixed_point(f, theta, jnp.zeros((1, image.size)), options, options)[0].sum()

    def through(iterations, theta):
        return unrolled(partial(f, theta), jnp.zeros((1, image.size)), iterations).sum()

    def temporary(value, iterations):
        program = jax.jit(jax.grad(partial(value, iterations))).lower((kernel, image)).compile()
        return program.memory_analysis().temp_size_in_bytes

    # Of the trace, a number an iteration in each search.
    sizes = [temporary(implicit, n) for n in (4, 8, 16)]
    assert max(sizes) - min(sizes) < 1000
    assert temporary(through, 16) - temporary(through, 4) > 12 * image.nbytes


def test_jacobian_penalty():
    matrix = np.random.default_rng(0).normal(size=(1, SIZE, SIZE))
    f = lambda matrix, z: linear((matrix, 0.0), z)  # noqa: E731
    exact = (matrix**2).sum() / SIZE

    def penalty(matrix, z):
        return jacobian_penalty(partial(f, matrix), z, jax.random.key(0), 4000)

    z = np.ones((1, SIZE))
    np.testing.assert_allclose(jit(penalty)(matrix, z), exact, rtol=0.05)
    by_matrix, by_z = jit(jax.grad(penalty, (0, 1)))(matrix, z)
    np.testing.assert_allclose(by_matrix, 2 * matrix / SIZE, atol=0.1 * np.abs(matrix).max())
    np.testing.assert_array_equal(by_z, np.zeros_like(z))


def test_flatten_and_back():
    tree = (np.arange(24.0).reshape(2, 3, 4), np.arange(10.0).reshape(2, 5))
    vectors = flatten(tree)
    assert vectors.shape == (2, 17)
    np.testing.assert_array_equal(vectors[1, 12:], [5, 6, 7, 8, 9])
    for a, b in zip(unflatten(vectors, tree), tree, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        dict(iterations=0),
        dict(memory=0),
        dict(tolerance=-1.0),
        dict(tolerance=float("nan")),
        dict(mixing=0.0),
        dict(regularization=-1.0),
    ],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SolverConfig(**options)
    with pytest.raises(ValueError, match="must be"):
        start(lambda z: z, jnp.zeros((2, 3), int), SolverConfig())
