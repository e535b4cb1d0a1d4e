"""Files in the format of torch before 1.6, with the names of the releases that come in it."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.readers import read_tensors
from tests.weights import torch_old
from tests.weights import torch_zip as tz

RNG = np.random.default_rng(0)


def _refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_the_bytes_that_torch_writes(tmp_path):
    """torch.save({"w": tensor}) of torch 1.1, spelled out, so that no pickler has a part in it."""
    data = (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
        b"\x80\x02M\xe9\x03."
        b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88"
        b"X\n\x00\x00\x00type_sizesq\x03}q\x04(X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04"
        b"X\x04\x00\x00\x00longq\x07K\x04uu."
        b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00"
        b"storageq\x03ctorch\nFloatStorage\nq\x04X\x0e\x00\x00\x0094023456789012q\x05X\x03\x00\x00\x00cpuq\x06"
        b"K\x06Ntq\x07QK\x00K\x03K\x02\x86q\x08K\x01K\x03\x86q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0b"
        b"tq\x0cRq\rs."
        b"\x80\x02]q\x00X\x0e\x00\x00\x0094023456789012q\x01a."
    ) + struct.pack("<q6f", 6, 1.0, 2.0, 3.0, -4.0, 0.5, 1e-30)
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    read = read_tensors(path)["w"]
    np.testing.assert_array_equal(read, np.array([[1, -4], [2, 0.5], [3, 1e-30]], np.float32))
    assert not read.flags.writeable


@pytest.mark.parametrize("kind", sorted(tz.KINDS))
def test_every_dtype(tmp_path, kind):
    array = RNG.integers(0, 100, (2, 3, 4)).astype(kind)
    read = read_tensors(torch_old.save(tmp_path / "a.pth", {"x": tz.tensor(array)}))["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_bfloat16_becomes_float32(tmp_path):
    storage = tz.Storage(np.array([0x3F80, 0xC000], "<u2").tobytes(), "BFloat16Storage", 2)
    root = {"x": tz.tensor(np.empty(2, "f2"), storage=storage)}
    read = read_tensors(torch_old.save(tmp_path / "a.pth", root))["x"]
    np.testing.assert_array_equal(read, np.array([1.0, -2.0], "f4"))
    assert read.dtype == np.float32


# Names as HRNet's, the anytime paper's and ASTMT's programs save them: (name, shape).
RELEASES = {
    "hrnet_w18_small_model_v2.pth": {
        "conv1.weight": (64, 3, 3, 3),
        "bn1.running_var": (64,),
        "bn1.num_batches_tracked": (),
        "stage2.0.fuse_layers.0.1.0.weight": (18, 36, 1, 1),
        "stage4.1.branches.3.1.conv2.weight": (8, 8, 3, 3),
    },
    "final_state.pth": {
        "model.layer1.0.conv1.Lambda": (),
        "model.layer1.0.conv1.square_dis": (7, 7),
        "model.exit1.0.weight": (4, 4, 1, 1),
        "model.last_layer.3.bias": (19,),
    },
    "pascal_resnet_model_epoch-59.pth": {
        "layer1.0.bn1.edge.weight": (64,),
        "layer1.0.bn1.human_parts.running_mean": (64,),
        "layer3.5.se.fc.semseg.0.weight": (4, 16),
        "layer2.0.adapt.normals.conv.weight": (8, 4, 1, 1),
        "layer2.0.downsample.process.weight": (8, 4, 1, 1),
        "layer2.0.downsample.norm.sal.bias": (8,),
        "decoder.last_conv.edge.weight": (1, 4, 1, 1),
    },
}


@pytest.mark.parametrize("file", sorted(RELEASES))
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_names_of_the_releases(tmp_path, file, wrapper):
    arrays = {name: np.asarray(RNG.normal(size=shape), "f4") for name, shape in RELEASES[file].items()}
    state = collections.OrderedDict((f"module.{name}", tz.tensor(array)) for name, array in arrays.items())
    state._metadata = {"": {"version": 1}}
    read = read_tensors(torch_old.save(tmp_path / file, {"epoch": 3, wrapper: state} if wrapper else state))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("save", [torch_old.save, tz.save])
@pytest.mark.parametrize("file", ["checkpoint.pth.tar", "MDEQ_Small_Cls.pkl", "net.PTH"])
def test_checkpoints_of_either_format_by_any_name(tmp_path, save, file):
    """HRNet's programs save `best_mIoU`, a NumPy scalar, beside the weights."""
    root = {
        "epoch": 484,
        "best_mIoU": np.float64(0.812),
        "note": np.bytes_(b"\xff"),
        "state_dict": {"model.conv1.weight": tz.tensor(np.arange(6, dtype="f4").reshape(2, 3))},
        "optimizer": {"state": {140_000_000_000_000: {"momentum_buffer": tz.tensor(np.ones(6, "f4"))}}},
    }
    read = read_tensors(save(tmp_path / file, root))
    assert list(read) == ["model.conv1.weight"]
    np.testing.assert_array_equal(read["model.conv1.weight"], [[0, 1, 2], [3, 4, 5]])


def test_views_share_a_storage(tmp_path):
    array = np.arange(24, dtype="f4").reshape(4, 6)
    storage = tz.Storage.of(array)
    views = {
        "whole": tz.tensor(array, storage=storage),
        "rows": tz.tensor(array, storage=storage, offset=6, size=(2, 3), stride=(6, 2)),
        "other": tz.tensor(-array),
    }
    read = read_tensors(torch_old.save(tmp_path / "a.pth", views))
    np.testing.assert_array_equal(read["whole"], array)
    np.testing.assert_array_equal(read["rows"], array[1:3, :6:2])
    np.testing.assert_array_equal(read["other"], -array)
    assert np.shares_memory(read["whole"], read["rows"])


def test_torch_0_3_tensors_and_parts_of_storages(tmp_path):
    array = np.arange(10, dtype="f4")
    root = {"x": tz.Call(tz.OLD_REBUILD_TENSOR, tz.Storage.of(array), 1, (2, 2), (2, 1))}
    read = read_tensors(torch_old.save(tmp_path / "a.pth", root, view=(4, 6)))["x"]
    np.testing.assert_array_equal(read, [[5, 6], [7, 8]])
    assert "exceeds storage" in _refusal(torch_old.save(tmp_path / "a.pth", root, view=(5, 6)))
    assert "exceeds its 4 elements" in _refusal(torch_old.save(tmp_path / "a.pth", root, view=(4, 4)))


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", range(4))
def test_code_in_any_of_the_pickles_is_refused_and_not_run(tmp_path, place):
    marker, whole = tmp_path / "ran", []
    for value in (1001, torch_old.MACHINE, {}, []):
        whole.append(pickle.dumps(value, 2))
    whole[place] = pickle.dumps(Malicious(marker), 2)
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(torch_old.MAGIC, 2) + b"".join(whole))
    assert f"{os.system.__module__}.system" in _refusal(path)
    assert not marker.exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path):
    pickled = b"\x80\x02cmodels.seg_hrnet\nHighResolutionNet\n)\x81}b."
    assert "models.seg_hrnet.HighResolutionNet" in _refusal(
        torch_old.save(tmp_path / "a.pth", pickled=pickled)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1000}, "version 1000"),
        ({"magic": torch_old.MAGIC + 1}, "not a PyTorch file"),
        ({"keys": []}, "list of storages"),
        ({"keys": ["94000000000000", "7"]}, "list of storages"),
        ({"keys": [94000000000000]}, "corrupt"),
        ({"keys": 3}, "list of storages"),
        ({"extra_count": 1}, "has 51 elements, and its tensors 50"),
        ({"extra_count": 2**62}, "elements, and its tensors 50"),
        ({"pickled": b"\x80\x02X\x07\x00\x00\x00storage\x85Q."}, "unknown persistent object"),
        ({"pickled": b"\x80\x02}"}, "corrupt"),
    ],
)
def test_damaged_files(tmp_path, changes, said):
    root = {"x": tz.tensor(np.ones(50, "f4"))}
    assert said in _refusal(torch_old.save(tmp_path / "a.pth", root, **changes))


def test_a_storage_that_claims_more_than_the_file_has(tmp_path):
    storage = tz.Storage(bytes(16), "FloatStorage", 10**15)
    root = {"x": tz.tensor(np.ones(4, "f4"), storage=storage)}
    assert "more bytes than the file has" in _refusal(torch_old.save(tmp_path / "a.pth", root))


def test_a_storage_of_two_types(tmp_path):
    record = b"(X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01NtQ"
    pickled = b"\x80\x02]" + record % b"Float" + b"0" + record % b"Int" + b"0."
    assert "1 of IntStorage, and elsewhere 1 of FloatStorage" in _refusal(
        torch_old.save(tmp_path / "a.pth", pickled=pickled)
    )


def test_truncated_at_any_point(tmp_path):
    whole = torch_old.save(tmp_path / "a.pth", {"x": tz.tensor(np.ones(50, "f4"))}).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        _refusal(cut)


def test_the_tar_format_is_named(tmp_path):
    path = tmp_path / "model.pth.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")
    assert "before 0.1.11" in _refusal(path)
