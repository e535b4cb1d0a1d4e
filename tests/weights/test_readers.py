from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import read_tensors, read_weights, write_weights
from dynpix_jax.weights.readers import read_metadata

RNG = np.random.default_rng(0)
DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def _refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def _tensors():
    tensors = {f"t_{dtype}": RNG.integers(0, 2, (3, 1, 2)).astype(dtype) for dtype in DTYPES}
    return {**tensors, "scalar": np.asarray(2.5, "f4"), "none": np.empty((0, 4), "f4")}


def test_reads_what_the_safetensors_package_writes(tmp_path):
    tensors = _tensors()
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", metadata={"k": "v"})
    read = read_tensors(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert read_metadata(tmp_path / "a.safetensors") == {"k": "v"}


def test_the_safetensors_package_reads_what_we_write(tmp_path):
    tensors = _tensors()
    tensors["strided"] = np.arange(12, dtype=">f4").reshape(3, 4).T
    write_weights(tmp_path / "a.safetensors", {"params": tensors})
    read = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert read.keys() == {f"params/{name}" for name in tensors}
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[f"params/{name}"], array)
    (file,) = tmp_path.iterdir()
    assert file.name == "a.safetensors"
    (tmp_path / "b").touch()  # readable by others as any file is
    assert file.stat().st_mode == (tmp_path / "b").stat().st_mode


def test_bfloat16_is_widened(tmp_path):
    array = np.array([1.0, -3.5, 1e30, 0.1], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"params/x": array}, tmp_path / "theirs.safetensors")
    write_weights(tmp_path / "ours.safetensors", {"params": {"x": array}})
    for name in ("theirs", "ours"):
        read = read_tensors(tmp_path / f"{name}.safetensors")["params/x"]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array.astype(np.float32))


def _write_raw(path, header, data=b"", length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"x": _entry()}, bytes(7), "corrupt"),
        ({"x": _entry()}, bytes(9), "corrupt"),
        ({"x": _entry(shape=(3,))}, bytes(8), "corrupt"),
        ({"x": _entry(shape=(2**40, 2**40))}, bytes(8), "corrupt"),
        ({"x": _entry(shape=(-2,))}, bytes(8), "corrupt"),
        ({"x": _entry(shape=(2.0,))}, bytes(8), "corrupt"),
        ({"x": _entry(offsets=(8, 0))}, bytes(8), "corrupt"),
        ({"x": _entry(), "y": _entry()}, bytes(8), "corrupt"),
        ({"x": _entry(offsets=(4, 12))}, bytes(12), "corrupt"),
        ({"x": _entry(dtype="F8_E4M3", shape=(8,))}, bytes(8), "tensor x: dtype F8_E4M3 is not one"),
        ({"x": _entry(dtype=["F32"])}, bytes(8), "corrupt"),
        ({"x": {"dtype": "F32"}}, bytes(8), "corrupt"),
        ({"x": 3}, bytes(8), "corrupt"),
        ([1], b"", "corrupt"),
        (b"{", b"", "corrupt"),
        (b"\xff\xff", b"", "corrupt"),
        (b'{"x": 1, "x": 2}', b"", "corrupt"),
        (b"[" * 100_000, b"", "corrupt"),
        ({"x": _entry(dtype="C64", shape=(1,))}, bytes(8), "tensor x: dtype C64 is not one"),
        ({"x": _entry(), "__metadata__": {"a": 3}}, bytes(8), "corrupt"),
        ({}, b"", "no tensors"),
    ],
)
def test_corrupt_safetensors(tmp_path, header, data, said):
    message = _refusal(_write_raw(tmp_path / "a.safetensors", header, data))
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("length", [2**63, 10**6, 3])
def test_corrupt_header_length(tmp_path, length):
    _refusal(_write_raw(tmp_path / "a.safetensors", {"x": _entry()}, bytes(8), length))


def test_truncated_anywhere(tmp_path):
    safetensors.numpy.save_file({"x": np.ones(9, "f4")}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", x=np.ones(9, "f4"))
    for name in ("a.safetensors", "a.npz"):
        whole = (tmp_path / name).read_bytes()
        for length in range(0, len(whole), 23):
            cut = tmp_path / f"cut_{name}"
            cut.write_bytes(whole[:length])
            _refusal(cut)


def test_npz(tmp_path):
    array = RNG.normal(size=(2, 3)).astype("f2")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **{"module.x": array})
        np.testing.assert_array_equal(read_tensors(tmp_path / "a.npz")["x"], array)


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, None], object))
    assert "a.npz" in _refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.array(["text"]))
    assert "not an array of numbers" in _refusal(tmp_path / "b.npz")


def test_npz_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr("dynpix_jax.weights.readers._MAX_NPZ_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000, "f4"))
    assert "limit" in _refusal(tmp_path / "a.npz")


def test_paths(tmp_path):
    assert "no such file" in _refusal(tmp_path / "a.npz")
    (tmp_path / "b.npz").mkdir()
    assert "not a file" in _refusal(tmp_path / "b.npz")
    assert ".safetensors, .npz, .pth, .pt" in _refusal(tmp_path / "a.h5")


def test_module_prefix_collision(tmp_path):
    np.savez(tmp_path / "a.npz", **{"module.x": np.ones(1), "x": np.ones(1)})
    assert "same name" in _refusal(tmp_path / "a.npz")


def test_weights_round_trip(tmp_path):
    variables = {
        "params": {"res2_1": {"conv1": {"kernel": RNG.normal(size=(1, 1, 4, 2)).astype("f4")}}},
        "batch_stats": {"stem_bn": {"mean": np.ones(3, "f4")}},
    }
    path = tmp_path / "new" / "w.safetensors"
    write_weights(path, variables, {"architecture": "resnet50"})
    for architecture in (None, "resnet50"):
        read = read_weights(path, architecture)
        kernel = read["params"]["res2_1"]["conv1"]["kernel"]
        np.testing.assert_array_equal(kernel, variables["params"]["res2_1"]["conv1"]["kernel"])
        np.testing.assert_array_equal(read["batch_stats"]["stem_bn"]["mean"], np.ones(3))
    with pytest.raises(UserError, match="weights of resnet50, expected resnet101"):
        read_weights(path, "resnet101")


def test_weights_from_npz(tmp_path):
    np.savez(tmp_path / "w.npz", **{"params/a/kernel": np.ones(2, "f4")})
    assert read_weights(tmp_path / "w.npz", "resnet50")["params"]["a"]["kernel"].shape == (2,)


def test_foreign_and_contradicting_names(tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.ones(2, "f4")})
    with pytest.raises(UserError, match="dynpix import-weights"):
        read_weights(tmp_path / "w.npz")
    for names in (("params/a", "params/a/b"), ("params/a/b", "params/a")):
        np.savez(tmp_path / "w.npz", **dict.fromkeys(names, np.ones(2, "f4")))
        with pytest.raises(UserError, match="params/a is a tensor, but params/a/b lies below it"):
            read_weights(tmp_path / "w.npz")


def test_write_weights_errors(tmp_path):
    variables = {"params": {"x": np.ones(1, "f4")}}
    with pytest.raises(UserError, match="safetensors"):
        write_weights(tmp_path / "w.npz", variables)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_weights(tmp_path / "file" / "w.safetensors", variables)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_weights(tmp_path / "folder.safetensors", variables)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]
