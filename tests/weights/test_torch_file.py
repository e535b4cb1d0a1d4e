from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.readers import read_tensors
from tests.weights import torch_zip as tz

RNG = np.random.default_rng(0)


def _refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", sorted(tz.KINDS))
def test_every_dtype_and_protocol(tmp_path, kind, protocol):
    array = RNG.integers(0, 100, (2, 3, 4)).astype(kind)
    path = tz.save(tmp_path / "a.pth", {"x": tz.tensor(array)}, protocol=protocol)
    read = read_tensors(path)["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_state_dict_of_a_module(tmp_path):
    # An OrderedDict with the attribute `_metadata`, as Module.state_dict() makes.
    state = collections.OrderedDict(
        weight=tz.Call(
            tz.REBUILD_PARAMETER, tz.tensor(np.ones((2, 1), "f4")), True, collections.OrderedDict()
        ),
        count=tz.tensor(np.asarray(7, "i8")),
        none=tz.tensor(np.empty((0, 3), "f4")),
    )
    state._metadata = {"": {"version": 1}}
    read = read_tensors(tz.save(tmp_path / "a.pth", state))
    assert list(read) == ["weight", "count", "none"]
    assert read["count"] == 7
    assert read["none"].shape == (0, 3)
    np.testing.assert_array_equal(read["weight"], np.ones((2, 1), "f4"))


def test_views_share_a_storage(tmp_path):
    array = np.arange(24, dtype="f4").reshape(4, 6)
    storage = tz.Storage.of(array)
    views = {
        "whole": tz.tensor(array, storage=storage),
        "transposed": tz.tensor(array, storage=storage, size=(6, 4), stride=(1, 6)),
        "rows": tz.tensor(array, storage=storage, offset=6, size=(2, 3), stride=(6, 2)),
        "expanded": tz.tensor(array, storage=storage, offset=3, size=(5, 2), stride=(0, 1)),
    }
    path = tz.save(tmp_path / "a.pth", views)
    with zipfile.ZipFile(path) as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 1
    read = read_tensors(path)
    np.testing.assert_array_equal(read["whole"], array)
    np.testing.assert_array_equal(read["transposed"], array.T)
    np.testing.assert_array_equal(read["rows"], array[1:3, :6:2])
    np.testing.assert_array_equal(read["expanded"], np.broadcast_to(array[0, 3:5], (5, 2)))
    assert not read["whole"].flags.writeable


def test_bfloat16_becomes_float32(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x0001], "u2")  # 1, -2, inf, the smallest subnormal
    storage = tz.Storage(bits.tobytes(), "BFloat16Storage", 4)
    read = read_tensors(tz.save(tmp_path / "a.pth", {"x": tz.tensor(np.empty(4, "f2"), storage=storage)}))[
        "x"
    ]
    np.testing.assert_array_equal(read, np.array([1.0, -2.0, np.inf, 2.0**-133], "f4"))
    assert read.dtype == np.float32


@pytest.mark.parametrize(("byteorder", "dtype"), [(b"big", ">f4"), (b"little", "<f4"), (None, "<f4")])
def test_byte_order(tmp_path, byteorder, dtype):
    array = np.array([1.5, -2.0], dtype)
    read = read_tensors(tz.save(tmp_path / "a.pth", {"x": tz.tensor(array)}, byteorder=byteorder))["x"]
    np.testing.assert_array_equal(read, [1.5, -2.0])


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_checkpoint_of_a_training_program(tmp_path, wrapper):
    state = {"module.fc.bias": tz.tensor(np.ones(3, "f4"))}
    root = {
        "epoch": 3,
        "best": 0.5,
        "note": "x",
        wrapper: state,
        "optimizer": {"state": {0: None}, "lr": [0.1]},
    }
    assert list(read_tensors(tz.save(tmp_path / "a.pth", root))) == ["fc.bias"]


def test_nested_dicts_without_a_known_wrapper_keep_their_names(tmp_path):
    root = {"net": {"w": tz.tensor(np.ones(3, "f4"))}, "list": [tz.tensor(np.ones(2, "f4"))]}
    assert sorted(read_tensors(tz.save(tmp_path / "a.pth", root))) == ["list.0", "net.w"]


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_code_in_the_pickle_is_refused_and_not_run(tmp_path, protocol):
    marker = tmp_path / "ran"
    root = {"w": Malicious(marker)}
    pickle.loads(pickle.dumps(root, protocol))
    assert marker.exists()  # the attack works on pickle itself
    marker.unlink()
    path = tz.save(tmp_path / "a.pth", pickled=pickle.dumps(root, protocol))
    assert f"{os.system.__module__}.system" in _refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "named"),
    [
        (b"\x80\x02c__builtin__\neval\nU\x021+\x85R.", "__builtin__.eval"),
        (b"(S'echo'\nios\nsystem\n.", "os.system"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02cdynpix_jax.weights.torch_file\nos.system\n.", "torch_file.os.system"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"Pfile\n.", "PERSID"),
    ],
)
def test_hostile_instructions_are_refused_by_name(tmp_path, pickled, named):
    assert named in _refusal(tz.save(tmp_path / "a.pth", pickled=pickled))


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        # A stand-in, or what it built, must not be changed by BUILD.
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x05buildK\x01sb.", "modify"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "torch.FloatStorage"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls a storage type"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89}tR.", "without a storage"),
        (b"\x80\x02K\x01r\xff\xff\xff\xff.", "memo index"),
        (b"\x80\x02U\x01aQ.", "persistent object"),
        (b"\x80\x02]q\x00h\x00a.", "nested too deeply"),
        (b"\x80\x02}(K\x01\x85K\x01u.", "has the key"),
        (b"\x80\x02}", "corrupt or truncated pickle"),
        (b"\x80\x02R.", "corrupt"),
        (b"", "corrupt or truncated pickle"),
        (b"\x80\x02K\x01.", "holds no tensors"),
    ],
)
def test_malformed_pickles(tmp_path, pickled, said):
    assert said in _refusal(tz.save(tmp_path / "a.pth", pickled=pickled))


def test_a_storage_cannot_be_rewritten(tmp_path):
    """BUILD on a storage could swap its array and make views reach outside of memory."""

    storage = tz.Storage.of(np.ones(2, "f4"))
    path = tz.save(tmp_path / "a.pth", [storage])
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("a/data.pkl")
    # ... BINPERSID, then an empty dict and BUILD.
    position = pickled.index(b"Q")
    hostile = pickled[: position + 1] + b"}b" + pickled[position + 1 :]
    assert "modify" in _refusal(tz.save(path, pickled=hostile, extra={"data/0": storage.data}))


def test_shared_containers_do_not_multiply(tmp_path):
    layer = [tz.tensor(np.ones(1, "f4"))]
    for _ in range(12):
        layer = [layer] * 10  # 10^12 leaves in a pickle of a few hundred bytes
    assert "nested too" in _refusal(tz.save(tmp_path / "a.pth", {"x": layer}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": (3, 2)}, "exceeds its 4 elements"),
        ({"offset": 1}, "exceeds its 4 elements"),
        ({"offset": -1}, "non-negative"),
        ({"stride": (-2, 1)}, "non-negative"),
        ({"stride": (1,)}, "strides"),
        ({"size": (2, 2.0)}, "non-negative"),
        ({"size": (2**62, 2**62), "stride": (0, 0)}, "corrupt"),
        ({"storage": tz.Storage(bytes(12), "FloatStorage", 4)}, "12 bytes, expected 16"),
        ({"storage": tz.Storage(bytes(20), "FloatStorage", 4)}, "20 bytes, expected 16"),
        ({"storage": tz.Storage(bytes(16), "FloatStorage", 10**15)}, "16 bytes, expected"),
        ({"storage": tz.Storage(bytes(16), "StrangeStorage", 4)}, "torch.StrangeStorage"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, changes, said):
    root = {"x": tz.tensor(np.ones((2, 2), "f4"), **changes)}
    assert said in _refusal(tz.save(tmp_path / "a.pth", root))


def test_missing_storage(tmp_path):
    path = tz.save(tmp_path / "a.pth", {"x": tz.tensor(np.ones(2, "f4"))})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("a/data.pkl")
    assert "a/data/0 is missing" in _refusal(tz.save(path, pickled=pickled))


def test_truncated_at_any_point(tmp_path):
    whole = tz.save(tmp_path / "a.pth", {"x": tz.tensor(np.ones(50, "f4"))}).read_bytes()
    for length in range(0, len(whole), 37):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:length])
        _refusal(path)


def test_flipped_byte_in_the_data(tmp_path):
    path = tz.save(tmp_path / "a.pth", {"x": tz.tensor(np.full(50, 3.0, "f4"))})
    data = path.read_bytes()
    where = data.index(np.full(50, 3.0, "f4").tobytes())
    path.write_bytes(data[:where] + b"\x01" + data[where + 1 :])
    assert "CRC" in _refusal(path)


def test_compressed_entries_are_refused(tmp_path):
    root = {"x": tz.tensor(np.zeros(100_000, "f4"))}
    assert "compressed" in _refusal(tz.save(tmp_path / "a.pth", root, compression=zipfile.ZIP_DEFLATED))


def test_overlapping_entries_are_refused(tmp_path):
    """Two directory records for the same bytes: the sum of the sizes exceeds the file."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/data/0", bytes(10_000))
        for copy in range(1, 20):
            info = zipfile.ZipInfo(f"a/data/{copy}")
            original = archive.getinfo("a/data/0")
            info.header_offset, info.CRC = original.header_offset, original.CRC
            info.file_size = info.compress_size = original.file_size
            archive.filelist.append(info)
        archive._didModify = True
    assert "more bytes than the file has" in _refusal(path)


def test_other_kinds_of_files(tmp_path):
    script = tz.save(tmp_path / "script.pt", {}, extra={"constants.pkl": b"x"})
    assert "TorchScript" in _refusal(script)
    text = tmp_path / "page.pth"
    text.write_text("<html>404</html>")
    assert "not a PyTorch file" in _refusal(text)
    plain = tmp_path / "plain.pth"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not of torch.save" in _refusal(plain)
