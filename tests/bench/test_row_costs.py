"""`dynpix bench row-costs`: blocks by rows are those over the whole map, and a table is printed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.bench import row_costs
from dynpix_jax.cli.main import main
from dynpix_jax.evaluation.timing import Timing


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


def test_the_numbers_of_a_line(capsys, monkeypatch):
    """Times and costs that are given: 8 ms everywhere, 2 and 6 ms by rows, costs of 1 and .5 a row."""

    def medians(programs, runs):
        assert (len(programs), runs) == (3, 4)
        return [Timing(ms, ms, ms, ms) for ms in (8.0, 2.0, 6.0)]

    monkeypatch.setattr(row_costs, "interleaved_medians", medians)
    monkeypatch.setattr(row_costs, "row_costs", lambda channels, winograd: (1.0, 0.5))
    options = ["--width", "4", "--size", "64x96", "--density", ".25", "1", "--runs", "4", "--mask", "random"]
    assert main(["bench", "row-costs", *options]) == 0
    lines = [line.replace("x ", "", 1).split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in lines[::2]] == [["16x24", "4"], ["8x12", "8"], ["4x6", "16"], ["2x3", "32"]]
    assert {tuple(line[2:]) for line in lines[1::2]} == {("8.0", "1.00", "0.75", "0.00", "1.00")}
    sparse = [[float(number) for number in line[2:]] for line in lines[::2]]
    assert sparse[0][:3] == [8.0, 0.25, 0.25]
    for _, density, ratio, interpolated, predicted in sparse:
        assert ratio == 0.25
        assert 0 < interpolated < 1.015 - density
        assert abs(predicted - density - interpolated / 2) < 0.015  # printed in hundredths
