"""Weights files with kernels in fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import read_weights, write_weights

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
KERNEL[..., 2] = 0  # a channel that is not used
VARIABLES = {"params": {"conv": {"kernel": KERNEL, "bias": np.linspace(-1, 1, 5, dtype=np.float32)}}}


def test_int8_is_off_by_half_a_step_at_most(tmp_path):
    """A step is 1/127 of the largest weight of the output channel."""
    path = tmp_path / "x.safetensors"
    write_weights(path, VARIABLES, precision="int8")
    stored = load_file(path)
    assert stored["params/conv/kernel"].dtype == np.int8
    assert np.abs(stored["params/conv/kernel"][..., [0, 1, 3, 4]]).max(axis=(0, 1, 2)).tolist() == [127] * 4
    found = read_weights(path)
    assert set(found) == {"params"}
    assert found["params"]["conv"]["kernel"].dtype == np.float32
    step = np.abs(KERNEL).max(axis=(0, 1, 2)) / 127
    error = np.abs(found["params"]["conv"]["kernel"] - KERNEL)
    assert np.all(error <= step / 2 + 1e-7)
    assert error.max() > 0
    np.testing.assert_array_equal(found["params"]["conv"]["bias"], VARIABLES["params"]["conv"]["bias"])


@pytest.mark.parametrize(("precision", "dtype"), [("float32", np.float32), ("float16", np.float16)])
def test_kernels_alone_are_reduced(precision, dtype, tmp_path):
    path = tmp_path / "x.safetensors"
    write_weights(path, VARIABLES, precision=precision)
    stored = load_file(path)
    assert stored["params/conv/kernel"].dtype == dtype
    assert stored["params/conv/bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("value", "precision", "message"),
    [
        (np.nan, "int8", "params/conv/kernel: a weight is not finite"),
        (np.inf, "float16", "params/conv/kernel: a weight is not finite"),
        (1e5, "float16", "params/conv/kernel: a weight is too large for float16"),
    ],
)
def test_values_that_do_not_fit(value, precision, message, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=message):
        write_weights(path, {"params": {"conv": {"kernel": np.full((2, 3), value)}}}, precision=precision)
    assert not path.exists()


@pytest.mark.parametrize(
    "kernel", [None, np.ones((2, 5), np.float32), np.ones((5, 2), np.int8)], ids=["none", "wide", "other"]
)
def test_scales_of_another_kernel(kernel, tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"scales/params/kernel": np.ones(5, np.float32)}
    save_file(tensors | ({} if kernel is None else {"params/kernel": kernel}), path)
    with pytest.raises(UserError, match=r"x.safetensors: scales/params/kernel: expected an 8-bit kernel"):
        read_weights(path)
