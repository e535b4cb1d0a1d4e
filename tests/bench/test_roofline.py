"""Predictions of `dynpix bench roofline`: counted by hand for one layer, and compared with a measurement."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from dynpix_jax.bench import device, roofline
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.cli import main
from dynpix_jax.ops.sparse import interpreted

SPEC = ConvSpec("layer", (16, 32), 128, 128)


def test_one_layer_by_hand():
    """16x32 positions, 128 channels, bfloat16: one tile on a TPU, four of 128 positions on a GPU."""
    maps, weights = 16 * 32 * 128 * 2, 9 * 128 * 128 * 2
    found = {chip: roofline.predict(roofline.convolution(SPEC, "bfloat16"), chip) for chip in ("v5e", "h100")}
    for prediction in found.values():
        assert prediction.dense == roofline.Work(2 * 16 * 32 * 9 * 128**2, 2 * maps + weights)
    tpu, gpu = found["v5e"], found["h100"]
    assert (tpu.tiles, gpu.tiles) == (1, 4)
    assert tpu.tile.flops == tpu.dense.flops == 4 * gpu.tile.flops
    # Rows are read with a halo of one above and below, columns in whole groups of 16 (two bytes each).
    assert tpu.tile.bytes == (18 * 48 + 16 * 32) * 128 * 2 + 4 * 16 * 32
    padded = 18 * 48 * 128 * 2
    assert tpu.fixed == maps + padded + weights + maps + 10 * 16 * 32
    assert gpu.fixed == weights + 24 * 16 * 32 + maps
    assert tpu.dense_seconds == pytest.approx(max(151e6 / 197e12, (2 * maps + weights) / 819e9), rel=0.01)


def test_more_active_tiles_take_longer_and_a_bottleneck_gains_more_than_its_convolution():
    ratios = {}
    for form, make in roofline.FORMS.items():
        prediction = roofline.predict(make(roofline.LAYERS[2], "bfloat16", 16), "v5e")
        ratios[form] = [prediction.ratio(share) for share in (0, 0.25, 0.5, 1)]
        assert ratios[form] == sorted(ratios[form])
        wins = prediction.wins_below
        assert prediction.ratio(wins) < 1 <= prediction.ratio(wins + 0.01)
    assert all(a < b for a, b in zip(ratios["bottleneck"], ratios["convolution"], strict=True))
    small = roofline.predict(roofline.convolution(roofline.LAYERS[0], "bfloat16"), "v5e")
    assert small.wins_below is None


def test_tiles_that_are_active():
    call = roofline.convolution(ConvSpec("layer", (40, 40), 8, 8), "bfloat16")
    mask = jnp.zeros((1, 40, 40), bool).at[0, 39, 39].set(True).at[0, :4, :4].set(True)
    # Tiles of 16x32 over 40x40: two of six.
    assert roofline.active_share(call, "v5e", mask) == pytest.approx(2 / 6)
    assert roofline.active_share(call, "h100", mask) == pytest.approx(17 / 1600)


def test_a_device_is_compared_with_its_predictions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "chip_of", lambda kind: "v5e")
    with interpreted():
        assert device.main(["--small", "--only", "predictions", "--out", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "predicted" in line]
    assert len(lines) == len(roofline.DENSITIES)
    assert all(line.endswith(("holds", "DOES NOT HOLD")) for line in lines)


def test_a_device_without_predictions_says_so(tmp_path, capsys):
    assert device.main(["--small", "--only", "predictions", "--out", str(tmp_path)]) == 0
    assert "no predictions for cpu" in capsys.readouterr().out


def test_the_table(capsys):
    assert main.main(["bench", "roofline", "--chip", "v6e"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(roofline.LAYERS) + 2 * 4
    assert len({line.count("|") for line in lines}) == 1
    assert main.main(["bench", "roofline", "--batch", "0"]) == 2
