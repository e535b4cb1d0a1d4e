"""`dynpix bench pixelnet-sampling`: that it runs, and that sampled steps need less memory."""

from __future__ import annotations

import json

from dynpix_jax.cli.main import main


def test_memory_of_a_small_case(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    rows = ["--rows", "FCN-8s", "dense, fc-1", "ours, fc-1"]
    assert main(["bench", "pixelnet-sampling", "--small", "--runs", "0", "--out", str(out), *rows]) == 0
    fcn, dense, ours = json.loads(out.read_text())["rows"]
    assert (dense["label"], dense["pixels"]) == ("dense, fc-1", 32 * 48)
    assert (ours["label"], ours["pixels"], ours["updates"]) == ("ours, fc-1", 50, None)
    assert dense["size"] == ours["size"]
    assert (fcn["label"], fcn["features"], fcn["pixels"]) == ("FCN-8s", 304, 32 * 48)
    assert dense["memory"] > ours["memory"]
    assert "fc-1: ours needs" in capsys.readouterr().out
    assert main(["bench", "pixelnet-sampling", "--rows", "fc-4"]) == 2
    assert "no row holds any of fc-4" in capsys.readouterr().err
