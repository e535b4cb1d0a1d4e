from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dynpix_jax.ops import gaussian_blur


@pytest.mark.parametrize(("shape", "sigma"), [((2, 9, 14, 2), 0.8), ((1, 5, 7, 1), 3.0)])
def test_it_is_that_of_scipy(shape, sigma):
    """The second one reaches beyond the map."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(gaussian_blur(jnp.asarray(x), sigma), expected, atol=1e-6)


def test_none_and_mistakes():
    x = jnp.ones((1, 3, 4, 1))
    assert gaussian_blur(x, 0.0) is x
    with pytest.raises(ValueError, match="sigma >= 0"):
        gaussian_blur(x, -1.0)
    with pytest.raises(ValueError, match="\\(B, H, W, C\\)"):
        gaussian_blur(x[0], 1.0)
