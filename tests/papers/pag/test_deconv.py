"""The deconvolution against a loop over its definition, and its bilinear start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.ops.columns import columns_together
from dynpix_jax.ops.platform import compiled_for
from dynpix_jax.papers.pag.network import Deconv, DeconvDecoder


def transposed_conv(x: np.ndarray, kernel: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Every cell adds its value times the kernel around pixel stride * cell; the last ones are repeated."""
    x = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    out = np.zeros((x.shape[0], *size, kernel.shape[-1]))
    for b, i, j in np.ndindex(x.shape[:3]):
        for u, v in np.ndindex(kernel.shape[:2]):
            row, col = stride * i + u - (stride - 1), stride * j + v - (stride - 1)
            if 0 <= row < size[0] and 0 <= col < size[1]:
                out[b, row, col] += x[b, i, j] @ kernel[u, v]
    return out


@pytest.mark.parametrize(("stride", "size"), [(4, (12, 20)), (4, (10, 17)), (1, (3, 5))])
def test_equals_the_definition(stride, size):
    rng = np.random.default_rng(stride)
    x = rng.normal(size=(2, 3, 5, 2)).astype(np.float32)
    kernel = rng.normal(size=(2 * stride, 2 * stride, 2, 2)).astype(np.float32)
    out = Deconv(2, stride).apply({"params": {"kernel": kernel}}, jnp.asarray(x), size)
    np.testing.assert_allclose(out, transposed_conv(x, kernel, stride, size), atol=1e-5)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_starts_as_bilinear_interpolation(stride):
    """Pixel (stride * i, stride * j) has the value of cell (i, j); a ramp stays one, then keeps its last."""
    h, w = 4, 6
    deconv = Deconv(2, stride)
    cells = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)[None].astype(np.float32)
    size = (h * stride - 1, w * stride)
    variables = deconv.init(jax.random.key(0), jnp.asarray(cells), size)
    out = deconv.apply(variables, jnp.asarray(cells), size)[0]
    rows, cols = (
        np.minimum(np.arange(n) / stride, last) for n, last in zip(size, (h - 1, w - 1), strict=True)
    )
    np.testing.assert_allclose(out, np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1), atol=1e-5)


def test_sizes_that_end_on_a_cell_do_not_see_what_is_beyond():
    """321x481 and the like (stride * (h - 1) + 1): whatever stands beyond the last cell."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 5, 2)).astype(np.float32)
    variables = {"params": {"kernel": rng.normal(size=(8, 8, 2, 2)).astype(np.float32)}}
    beyond = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # a further cell of zeros
    out, same = (Deconv(2, 4).apply(variables, jnp.asarray(cells), (9, 17)) for cells in (x, beyond))
    np.testing.assert_allclose(out, same, atol=1e-6)


def test_refuses_a_size_it_cannot_fill():
    with pytest.raises(ValueError, match="more than stride 4 times"):
        Deconv(2, 4).init(jax.random.key(0), jnp.zeros((1, 3, 5, 2)), (13, 20))


@pytest.mark.parametrize(
    ("features", "width", "columns"), [(32, 20, 4), (64, 20, 2), (16, 19, 1), (24, 20, 5)]
)
def test_columns_side_by_side_change_no_value(features, width, columns):
    """As a TPU's program has them."""
    rng = np.random.default_rng(features)
    x = rng.normal(size=(1, 3, 5, 6)).astype(np.float32)
    decoder = DeconvDecoder(6, features, 3, 4, layers=1)
    variables = decoder.init(jax.random.key(0), x, (11, width))
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables)

    def made():
        def loss(variables):  # a new one each time: what is traced is kept
            logits = decoder.apply(variables, x, (11, width))
            return (logits**2).mean(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    gradient, logits = made()
    with compiled_for("tpu"):
        assert columns_together(features, width) == columns
        of_tpu, found = made()
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
    for leaf, other in zip(jax.tree.leaves(of_tpu), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
