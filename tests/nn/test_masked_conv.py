"""What sparse convolutions between two exits fill: all that somebody reads, by loops over positions."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.nn.masked_conv import Masking


def around(i: int, size: int) -> range:
    return range(max(i - 1, 0), min(i + 2, size))


def read_bilinearly(i: int, size: int, low: int) -> set[int]:
    """The cells of a line of ``low`` that position i of the enlarged line of ``size`` is made of."""
    place = max((i + 0.5) * low / size - 0.5, 0.0)
    return {min(int(place), low - 1), min(int(place) + 1, low - 1)}


@pytest.mark.parametrize("size", [(16, 24), (15, 23), (2, 5)])
def test_everything_that_is_read_is_filled(size):
    """Odd sides too: there the mask's position for i is not the one that a stride of 2 puts in the middle."""
    rng = np.random.default_rng(0)
    masks = rng.random((4, *size)) < np.array([0.02, 0.05, 0.1, 0.2])[:, None, None]
    masking = Masking(jnp.asarray(masks), mode="sparse")
    assert next(iter(masking.needed)) == size
    at = {of: np.asarray(masking.at(of)) for of in masking.needed}
    for image in range(len(masks)):
        active = {of: found[image] for of, found in at.items()}
        needed = {of: np.asarray(found)[image] for of, found in masking.needed.items()}
        for of, positions in active.items():
            for i, j in np.argwhere(positions):  # 3x3
                assert all(needed[of][p, q] for p in around(i, of[0]) for q in around(j, of[1]))
        for high, low in itertools.pairwise(needed):
            assert low == ((high[0] + 1) // 2, (high[1] + 1) // 2)
            for i, j in np.argwhere(active[low]):  # 3x3 of stride 2, from the higher branch
                assert all(needed[high][p, q] for p in around(2 * i, high[0]) for q in around(2 * j, high[1]))
        for high, low in itertools.combinations(needed, 2):
            for i, j in np.argwhere(needed[high]):  # enlarged from the lower branch
                rows, columns = (read_bilinearly(k, high[a], low[a]) for a, k in enumerate((i, j)))
                assert all(needed[low][p, q] for p in rows for q in columns)
