"""Weights files with kernels in fewer bits."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import read_tensors, read_weights, write_weights

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
        (1e5, "float16", "params/conv/kernel: a weight is above 65504, float16's largest"),
        (1.0, "int4", "precision 'int4': "),
    ],
)
def test_values_that_do_not_fit(value, precision, message, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=message):
        write_weights(path, {"params": {"conv": {"kernel": np.full((2, 3), value)}}}, precision=precision)
    assert not path.exists()


def test_tiny_and_large_channels(tmp_path):
    """Of numbers near the ends of float32, one scale each: relative to the channel's largest."""
    path = tmp_path / "x.safetensors"
    kernel = np.array([[1e-37, 1e38], [-1e-37, 5e37]], np.float32)
    write_weights(path, {"params": {"kernel": kernel}}, precision="int8")
    np.testing.assert_allclose(read_weights(path)["params"]["kernel"], kernel, rtol=1 / 100)


def test_what_is_stored_smaller_is_read_as_float32(tmp_path):
    path = tmp_path / "x.safetensors"
    for precision in ("float16", "int8"):
        write_weights(path, VARIABLES, precision=precision)
        assert {leaf.dtype for leaf in read_weights(path)["params"]["conv"].values()} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("kernel", "scales", "message"),
    [
        (None, np.ones(5), "scales/params/kernel: expected a kernel of 8 bits"),
        (np.ones((2, 5), np.float32), np.ones(5), "scales/params/kernel: expected a kernel of 8 bits"),
        (
            np.ones((5, 2), np.int8),
            np.ones(5),
            "params/kernel: a kernel of 8 bits; expected 2 float",
        ),
        (np.ones((2, 5), np.int8), None, "params/kernel: a kernel of 8 bits; expected 5 float32 scales"),
        (np.ones((2, 5), np.int8), np.full(5, np.nan), "scales/params/kernel: a scale is not a positive"),
        (np.ones((2, 5), np.int8), np.zeros(5), "scales/params/kernel: a scale is not a positive number"),
    ],
)
def test_kernels_and_scales_that_do_not_fit(kernel, scales, message, tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"params/kernel": kernel}
    tensors["scales/params/kernel"] = None if scales is None else scales.astype(np.float32)
    given = {name: value for name, value in tensors.items() if value is not None}
    save_file(given, path, {"format": "dynpix_jax 1"})
    with pytest.raises(UserError, match=f"x.safetensors: {message}"):
        read_weights(path)


def test_files_of_others_are_read_as_they_are(tmp_path):
    """Their 8-bit tensors, and names that begin with scales/, are not ours."""
    path = tmp_path / "x.safetensors"
    tensors = {"scales/a": np.ones(3, np.float32), "b": np.ones((2, 3), np.int8)}
    save_file(tensors, path)
    found = read_tensors(path)
    assert set(found) == set(tensors)
    assert found["b"].dtype == np.int8
