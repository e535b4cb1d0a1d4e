"""`dynpix bench row-costs`: blocks by rows are those over the whole map, and a table is printed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.bench import row_costs
from dynpix_jax.cli.main import main


def test_rows_compute_what_the_whole_map_does():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.nn.relu(jax.random.normal(keys[0], (1, 6, 9, 4)))
    kernels = [0.1 * jax.random.normal(key, (3, 3, 4, 4)) for key in keys[1:]]
    everywhere = jnp.ones((1, 6, 9), bool)
    dense = row_costs._dense(x, kernels)
    np.testing.assert_allclose(row_costs._sparse(x, kernels, everywhere, everywhere), dense, atol=1e-5)


def test_a_line_for_each_branch(capsys):
    """Sides that strides do not divide are rounded up, as in the network."""
    arguments = ["--width", "2", "--size", "61x100", "--blocks", "1", "--density", ".5", "--runs", "1"]
    assert main(["bench", "row-costs", *arguments]) == 0
    heads, *lines = capsys.readouterr().out.splitlines()
    assert heads.split() == ["branch", "dense", "ms", "density", "rows/dense", "interpolated", "row_costs"]
    assert [line.split()[0] for line in lines] == ["16x25", "8x13", "4x7", "2x4"]
    assert main(["bench", "row-costs", "--size", "64"]) == 2
