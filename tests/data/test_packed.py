"""Packing: the same elements, whatever interrupts it, and damage is found and named."""

from __future__ import annotations

import json
import pickle
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Element, Source, annotators_of
from dynpix_jax.data.loader import make_loader
from dynpix_jax.data.packed import MANIFEST, decode, encode, verify
from dynpix_jax.data.packing import PARTIAL, pack
from dynpix_jax.data.sources import build_source

SECTION = {
    "name": "scenes",
    "size": (20, 24),
    "length": 7,
    "fields": ("segmentation", "boundaries", "depth", "normals", "albedo", "keypoints"),
}


def open_packed(root: Path, split: str = "train", **options: object) -> Source:
    return build_source({"name": "packed", "root": str(root), **options}, split)


def assert_same(left: Element, right: Element) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].shape == right[name].shape
        assert left[name].tobytes() == right[name].tobytes(), name


def pack_scenes(root: Path, section: dict[str, object] = SECTION, **options: object) -> Source:
    source = build_source(section, "train")
    # A record of these scenes has 29 kB: with no shard above 1 MB all would be in one.
    pack(source, section, "train", root / "train", **options)  # type: ignore[arg-type]
    return source


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two elements a shard."""
    size = len(encode(build_source(SECTION, "train")[0]))
    monkeypatch.setattr("dynpix_jax.data.packing.MEGABYTE", 2 * size + 9)


def test_shards_must_hold_what_is_asked_for(tmp_path: Path) -> None:
    section = {**SECTION, "seed": 3}
    pack_scenes(tmp_path, section)
    # Given to the source, as a tuple that JSON made a list; left to its default.
    given = {name: value for name, value in section.items() if name not in ("name", "fields")} | {
        "crop": None
    }
    assert len(open_packed(tmp_path, of="scenes", options=given)) == 7
    with pytest.raises(UserError, match=r"made with seed=3, expected 4; make it .* --set seed=4"):
        open_packed(tmp_path, of="scenes", options={**given, "seed": 4})
    with pytest.raises(UserError, match=r"made of scenes, expected camvid"):
        open_packed(tmp_path, of="camvid")
    with pytest.raises(UserError, match=r"options\.sed: unknown key; did you mean 'seed'"):
        open_packed(tmp_path, of="scenes", options={"sed": 4})
    with pytest.raises(UserError, match=r"\.of: missing"):
        open_packed(tmp_path, options=given)


def test_records_are_exact() -> None:
    element = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "slice": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3],
        "empty": np.zeros((0, 3), np.int32),
        "index": np.array(7, np.int64),
    }
    record = encode(element)
    assert record == encode({name: value.copy() for name, value in element.items()})
    assert_same(decode(record, tuple(element)), element)
    assert list(decode(record, ("index",))) == ["index"]


@pytest.mark.usefixtures("small_shards")
def test_same_elements_spec_and_names(tmp_path: Path) -> None:
    seen = []
    source = pack_scenes(tmp_path, shard_megabytes=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 7), (2, 7), (4, 7), (6, 7), (7, 7)]
    packed = open_packed(tmp_path, verify=True)
    assert isinstance(packed, Source)
    assert packed.spec == source.spec
    assert len(packed) == 7
    for index in (6, 0, 3, 1, 2, 5, 4):
        assert packed.name(index) == source.name(index)
        assert_same(packed[index], source[index])
    with pytest.raises(IndexError):
        packed[7]
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        ".lock",
        MANIFEST,
        *(f"shard-{number:05d}.array_record" for number in range(4)),
    ]
    # After a reader was opened it can still be sent to a worker.
    assert_same(pickle.loads(pickle.dumps(packed))[3], source[3])
    some = open_packed(tmp_path, fields=("depth",))
    assert list(some[2]) == ["image", "depth", "index"]
    assert some.spec.labels == ("depth",)


def test_loader_gives_the_same_batches(tmp_path: Path) -> None:
    source = pack_scenes(tmp_path)
    loaders = (make_loader(s, batch_size=3, train=True, threads=2) for s in (source, open_packed(tmp_path)))
    one, two = (list(islice(loader, 4)) for loader in loaders)
    for left, right in zip(one, two, strict=True):
        assert_same(left, right)


def test_workers_write_the_same_files(tmp_path: Path) -> None:
    section = dict(SECTION, length=4)
    pack_scenes(tmp_path / "one", section)
    pack_scenes(tmp_path / "two", section, workers=1)
    one, two = (verify(tmp_path / name / "train") for name in ("one", "two"))
    assert one.shards == two.shards


class Failing:
    """The scenes, of which one cannot be read."""

    def __init__(self, source: Source, bad: int) -> None:
        self.source, self.bad, self.read = source, bad, []
        self.spec = source.spec

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __getitem__(self, index: int) -> Element:
        self.read.append(index)
        if index == self.bad:
            raise UserError(f"element {index} is broken")
        return self.source[index]


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_run_is_continued(tmp_path: Path) -> None:
    source = build_source(SECTION, "train")
    folder = tmp_path / "train"
    with pytest.raises(UserError, match="element 5 is broken"):
        pack(Failing(source, 5), SECTION, "train", folder, shard_megabytes=1)
    assert (folder / PARTIAL).is_file()
    with pytest.raises(
        UserError, match=r"file not found: .*train.manifest\.json; make it with dynpix prepare"
    ):
        open_packed(tmp_path)
    # A shard that was finished but cut short, as a full disk may leave it, is made again too.
    shard = folder / "shard-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-5])
    whole = Failing(source, -1)
    pack(whole, SECTION, "train", folder, shard_megabytes=1)
    assert whole.read == [2, 3, 4, 5, 6]
    assert not list(folder.glob("*.tmp"))
    assert not (folder / PARTIAL).exists()
    packed = open_packed(tmp_path, verify=True)
    for index in range(7):
        assert_same(packed[index], source[index])
    # What is complete is left alone.
    again = Failing(source, -1)
    pack(again, SECTION, "train", folder, shard_megabytes=1)
    assert again.read == []
    # A deleted shard is made again, and no other.
    before = verify(folder)
    shard.unlink()
    pack(again, SECTION, "train", folder, shard_megabytes=1)
    assert again.read == [2, 3]
    assert verify(folder) == before


def test_another_source_or_run_is_refused(tmp_path: Path) -> None:
    pack_scenes(tmp_path)
    for change, word in (({"length": 8}, "source"), ({"seed": 1}, "source")):
        with pytest.raises(UserError, match=rf"train was packed with {word} = .*choose another --out"):
            pack_scenes(tmp_path, SECTION | change)
    empty = Failing(build_source(SECTION, "train"), 0)
    empty.source = ()  # type: ignore[assignment]
    with pytest.raises(UserError, match="has no elements"):
        pack(empty, SECTION, "train", tmp_path / "empty")

    class Again(Failing):
        def __getitem__(self, index: int) -> Element:
            with pytest.raises(UserError, match=r"is in use by process \d+ on .*wait"):
                pack(self.source, SECTION, "train", tmp_path / "busy")
            return super().__getitem__(index)

    pack(Again(build_source(SECTION, "train"), -1), SECTION, "train", tmp_path / "busy")


@pytest.mark.usefixtures("small_shards")
def test_a_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    source = pack_scenes(tmp_path, shard_megabytes=1)
    elements = [source[index] for index in range(4)]
    shard = tmp_path / "train" / "shard-00001.array_record"
    content = shard.read_bytes()
    rng = np.random.default_rng(0)

    def reads_as_it_was(index: int) -> bool:
        try:
            element = open_packed(tmp_path)[index]
        except UserError as error:
            return "shard-00001.array_record is damaged: element" not in str(error)
        assert_same(element, elements[index])
        return True

    found = 0
    # Shards end with padding, of which nothing but the digest can tell that it was changed.
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    for place in rng.choice(used, 25):
        harmed = bytearray(content)
        harmed[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(harmed)
        with pytest.raises(UserError, match=r"shard-00001\.array_record is damaged: its SHA-256"):
            verify(tmp_path / "train")
        # Read without that, an element is either as it was or named as damaged.
        found += not all([reads_as_it_was(2), reads_as_it_was(3)])
        assert reads_as_it_was(0)
    assert found > 20
    with pytest.raises(UserError, match=r"shard-00001\.array_record is damaged: its SHA-256"):
        open_packed(tmp_path, verify=True)
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.array_record is damaged: \d+ bytes, expected \d+"):
        open_packed(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard not found: .*shard-00001\.array_record; run dynpix prepare"):
        open_packed(tmp_path)


def test_wrong_manifests_are_named(tmp_path: Path) -> None:
    pack_scenes(tmp_path)
    with pytest.raises(UserError, match=r"no split 'vla'; did you mean 'val'"):
        open_packed(tmp_path, "vla")
    with pytest.raises(UserError, match=r"no label 'depht'; did you mean 'depth'"):
        open_packed(tmp_path, fields=("depht",))
    path = tmp_path / "train" / MANIFEST
    content = json.loads(path.read_text())
    del content["checksum"]
    for change, message in (
        ({"names": [*content["names"], "more"]}, r"is no manifest \(ValueError: \d+ names of \d+ elements"),
        ({"shards": []}, "names of 0 elements"),
        ({"checksum": 1}, "wrong checksum"),
        ({"format": 2}, "has format 2; expected 1"),
        ({"spec": 3}, "is no manifest"),
        ({"shards": [{"file": "a"}]}, "is no manifest"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            open_packed(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="is no manifest"):
        open_packed(tmp_path)


@pytest.mark.parametrize("name", ["bsds500", "camvid", "7scenes_kitchen"])
def test_real_data(shared: Path, tmp_path: Path, name: str) -> None:
    """A few images of each in the folder's own layout."""
    origin = shared / "data" / {"bsds500": "BSDS500", "camvid": "CamVid"}.get(name, name)
    if not origin.is_dir():
        pytest.skip(f"{name} not found at {origin}")
    folder = tmp_path / "source"
    pairs = {
        "bsds500": ("data/images/val", "data/groundTruth/val", ".mat"),
        "camvid": ("val", "valannot", ".png"),
        "7scenes_kitchen": ("val", "val", ".depth.png"),
    }
    images, labels, suffix = pairs[name]
    for sub in (images, labels):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for path in sorted((origin / images).glob("*.jpg"))[:2]:
        shutil.copy(path, folder / images)
        stem = path.name.removesuffix(".jpg").removesuffix(".color")
        shutil.copy(origin / labels / f"{stem}{suffix}", folder / labels)
    section = {"name": name.replace("7scenes_kitchen", "seven_scenes"), "root": str(folder)}
    source = build_source(section, "val")
    pack(source, section, "val", tmp_path / "packed" / "val")
    packed = open_packed(tmp_path / "packed", "val", verify=True)
    assert len(packed) == len(source) == 2
    for index in range(2):
        assert_same(packed[index], source[index])
        assert (annotators_of(packed, index) is not None) == (name == "bsds500")
        if name == "bsds500":
            one, two = packed.annotators(index), source.annotators(index)
            assert len(one) == len(two)
            np.testing.assert_array_equal(one, two)
