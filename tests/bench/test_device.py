"""`dynpix bench device` on a CPU: that it runs, writes what it promises, and notices wrong results."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.bench import device
from dynpix_jax.ops.sparse import interpreted
from tests.ops.brute import conv_loop

ROOT = Path(__file__).resolve().parents[2]

# What the machine with the device may not have.
MISSING = ("flax", "optax", "orbax", "grain", "ml_collections", "cv2", "absl", "rich", "tensorflow_datasets")


def test_a_small_run_needs_only_jax_and_numpy(tmp_path):
    code = (
        f"import runpy, sys; sys.modules |= dict.fromkeys({MISSING}); "
        f"sys.argv = ['device.py', '--small', '--out', {str(tmp_path)!r}]; "
        "runpy.run_module('dynpix_jax.bench.device', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "device.json").read_text())
    assert found["small"]
    assert found["not_reached"] == []
    checked = [record for record in found["correctness"] if "error" in record]
    assert {r["implementation"] for r in checked} >= {"masked", "gather"}
    assert {r["dtype"] for r in checked} == {"float32", "bfloat16", "float16"}
    assert {r["mask"] for r in checked} == {"empty", "one", "full", "random", "blobs"}
    assert not any(r["wrong"] for r in checked)
    forms = {(r["form"], r["implementation"], r["mask"]) for r in checked if "form" in r}
    assert {form for form, *_ in forms} == {"bottleneck", "branch"}
    assert len(forms) == 2 * 2 * 5
    skipped = {r["implementation"]: r["skipped"] for r in found["correctness"] if "skipped" in r}
    assert "needs gpu, the platform is cpu" in skipped["pallas_gpu"]
    measured = [r for r in found["speed"] if r["label"] == "gather"]
    assert [(r["mask"], round(r["density"], 1)) for r in measured] == [
        ("random", 0.3),
        ("random", 1.0),
        ("blobs", 0.3),
        ("blobs", 1.0),
    ]
    for r in measured:
        assert r["timing"]["p10"] <= r["timing"]["median"] <= r["timing"]["p90"]
    assert (tmp_path / "device_gather.png").stat().st_size > 1000


def test_its_reference_is_the_loop():
    spec = device.small(device.ODD_LAYERS[-1])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *spec.size, spec.channels))
    kernel = rng.standard_normal((*spec.kernel_size, spec.channels, spec.features))
    expected = conv_loop(x, kernel, strides=spec.strides, dilation=spec.dilation)
    np.testing.assert_allclose(device.reference(x, kernel, spec), expected, atol=1e-12)


@pytest.mark.parametrize("fault", ["values", "nan", "outside"])
def test_wrong_results_are_noticed(tmp_path, monkeypatch, capsys, fault):
    def faulty(x, kernel, mask, *, strides, dilation, implementation):
        right = device.conv(x, kernel, strides=strides, dilation=dilation)
        masked = jnp.where(mask[..., None], right, 0)
        return {"values": 1.1 * masked, "nan": masked * math.nan, "outside": right}[fault]

    monkeypatch.setattr(device, "implementations", lambda: ["masked"])
    monkeypatch.setattr(device, "perforated_conv", faulty)
    monkeypatch.setattr(device, "BOUNDS", {"float32": 1e-5})
    assert device.main(["--small", "--only", "correctness", "--out", str(tmp_path)]) == 1
    assert "WRONG RESULTS" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["no norm", "gradient", "idle positions", "nan", "kernel"])
def test_wrong_chains_are_noticed(tmp_path, monkeypatch, capsys, fault):
    def faulty(x, mask, layers, *, combine, init, implementation):
        if fault == "no norm":
            layers = (layers[0], *layers[2:])
        if fault == "gradient":  # of the first norm
            layers = (layers[0], jax.lax.stop_gradient(layers[1]), *layers[2:])
        if fault == "kernel":  # its last tap is missing
            first = dataclasses.replace(layers[0], kernel=layers[0].kernel.at[-1, -1].set(0))
            layers = (first, *layers[1:])
        y = device.sparse_block_reference(x, mask, layers, combine=combine, init=init)
        if fault == "idle positions":
            return jnp.where(mask[..., None], y, 0)
        return y * math.nan if fault == "nan" else y

    monkeypatch.setattr(device, "implementations", lambda: ["masked"])
    monkeypatch.setattr(device, "BOUNDS", {"float32": 1e-5})
    monkeypatch.setattr(device, "check", lambda *_, **__: [])
    monkeypatch.setattr(device, "sparse_block", faulty)
    assert device.main(["--small", "--only", "correctness", "--out", str(tmp_path)]) == 1
    assert "WRONG RESULTS" in capsys.readouterr().out


def test_the_chains_of_the_kernels_are_right(monkeypatch):
    """In Pallas' interpreter, with as small a layer as there is."""
    spec = device.ConvSpec("layer", (5, 6), 8, 8)
    monkeypatch.setattr(device, "implementations", lambda: ["pallas_tpu", "pallas_gpu"])
    with interpreted():
        found = list(device.check_form("bottleneck", spec, "bfloat16", batch=1))
    assert [r["implementation"] for r in found] == ["pallas_tpu"] * 5 + ["pallas_gpu"] * 5
    assert not any(r["wrong"] for r in found)


def test_only_the_implementations_that_are_named_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "BOUNDS", {"float32": 1e-5})
    arguments = ["--small", "--only", "correctness", "--out", str(tmp_path)]
    assert device.main([*arguments, "--implementation", "gather"]) == 0
    checked = json.loads((tmp_path / "device.json").read_text())["correctness"]
    assert {(r.get("form"), r["implementation"]) for r in checked} == {
        (form, "gather") for form in (None, "bottleneck", "branch")
    }


def test_what_the_time_did_not_suffice_for_is_listed(tmp_path):
    began = time.monotonic()
    assert device.main(["--minutes", "0", "--out", str(tmp_path), "--only", "speed"]) == 0
    assert time.monotonic() - began < 60
    missed = json.loads((tmp_path / "device.json").read_text())["not_reached"]
    # bfloat16 and float32, batch 1 and 16, two kinds of masks.
    assert len(missed) == 8 * len(device.LAYERS)
