"""The loader: nothing lost, nothing repeated, nothing that depends on workers, processes or interruptions."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from dynpix_jax.core.augmentation import BoxRanges, GeometryRanges
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import BOX, IMAGE, INDEX, Element, FieldSpec, SourceSpec
from dynpix_jax.data.loader import Batch, Loader, make_loader

AUGMENT = GeometryRanges(scales=(0.8, 1.0, 1.3), rotations=(0.0, 22.5), flip=True, crop=(8, 10))


class Noise:
    """Random images, of two sizes if asked."""

    spec = SourceSpec(
        "noise",
        {
            "image": IMAGE,
            "boundaries": FieldSpec("boundary", (None, None), "float32", ignore=-1),
            "segmentation": FieldSpec("label", (None, None), "int32", ignore=255),
            "index": INDEX,
        },
    )

    def __init__(self, length: int = 10, sizes: tuple[tuple[int, int], ...] = ((12, 16),)) -> None:
        self.length, self.sizes = length, sizes

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> Element:
        rng = np.random.default_rng(index)
        size = self.sizes[index % len(self.sizes)]
        return {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "boundaries": rng.integers(0, 2, size).astype(np.float32),
            "segmentation": rng.integers(0, 5, size, dtype=np.int32),
            "index": np.array(index),
        }


def train_loader(seed: int = 3, **options: object) -> Loader:
    return make_loader(Noise(), batch_size=4, seed=seed, train=True, augment=AUGMENT, **options)  # type: ignore[arg-type]


def first(loader: Loader, count: int) -> list[Batch]:
    return list(islice(loader, count))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_training_sees_every_element_once_an_epoch_in_new_order() -> None:
    ids = np.concatenate([batch["index"] for batch in first(train_loader(), 15)])
    epochs = ids.reshape(6, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert train_loader().steps_per_epoch == 2


def test_batches_have_the_declared_form() -> None:
    batch = first(train_loader(), 1)[0]
    assert batch["image"].shape == (4, 8, 10, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["boundaries"].dtype == np.float32
    assert batch["segmentation"].dtype == np.int32
    assert batch["index"].dtype == np.int64
    assert batch["valid"].dtype == np.bool_
    assert batch["valid"].all()


def test_same_seed_same_batches_other_seed_others() -> None:
    assert_equal(first(train_loader(), 6), first(train_loader(threads=1), 6))
    other = first(train_loader(seed=4), 1)[0]
    assert not np.array_equal(other["image"], first(train_loader(), 1)[0]["image"])


def test_augmentation_is_of_seed_epoch_and_index() -> None:
    """Whatever the order, an element looks the same in one epoch, and different in another."""
    small = make_loader(Noise(), batch_size=1, seed=3, train=True, augment=AUGMENT)
    by_place = [(int(b["index"][0]), b["image"][0]) for b in first(small, 20)]
    images = np.concatenate([b["image"] for b in first(train_loader(), 5)])
    ids = np.concatenate([b["index"] for b in first(train_loader(), 5)])
    for (element_id, image), other_id, other in zip(by_place, ids, images, strict=True):
        assert element_id == other_id
        np.testing.assert_array_equal(image, other)
    epochs = [dict(by_place[:10]), dict(by_place[10:])]
    assert any(not np.array_equal(epochs[0][i], epochs[1][i]) for i in range(10))


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_begins_anywhere(stop: int) -> None:
    assert_equal(list(islice(train_loader().start(stop), 8 - stop)), first(train_loader(), 8)[stop:])


def test_begins_late_without_reading_what_was_before() -> None:
    class Counted(Noise):
        reads = 0

        def __getitem__(self, index: int) -> Element:
            Counted.reads += 1
            return super().__getitem__(index)

    loader = make_loader(Counted(), batch_size=4, train=True, threads=1)
    iterator = loader.start(100_000)
    next(iterator)
    iterator.close()
    assert Counted.reads <= 4 * 4  # the batch, and those that its thread reads ahead


@pytest.mark.slow
def test_two_workers_give_the_same_batches_from_anywhere() -> None:
    for start in (0, 3):
        iterator = train_loader(workers=2).start(start)
        try:
            assert_equal(list(islice(iterator, 5)), first(train_loader(), 8)[start : start + 5])
        finally:
            iterator.close()


def test_processes_share_a_batch() -> None:
    whole = first(train_loader(), 4)
    for rows in ((0, 1), (1, 3), (2,)):
        part = first(train_loader(rows=rows), 4)
        assert_equal(part, [{k: batch[k][list(rows)] for k in batch} for batch in whole])


def test_evaluation_pads_the_last_batch_and_loses_nothing() -> None:
    joined = list(make_loader(Noise(), batch_size=8, train=False))
    assert len(joined) == 2
    assert [b["image"].shape[0] for b in joined] == [8, 8]
    assert joined[1]["valid"].tolist() == [True] * 2 + [False] * 6
    assert joined[1]["index"].tolist() == [8, 9] + [-1] * 6
    assert (joined[1]["boundaries"][2:] == -1).all()
    assert (joined[1]["segmentation"][2:] == 255).all()
    source = Noise()
    for batch in joined:
        for i, element_id in enumerate(batch["index"]):
            if element_id >= 0:
                np.testing.assert_array_equal(batch["image"][i], source[element_id]["image"])


def test_pad_to_keeps_the_image_and_ignores_the_rest() -> None:
    source = Noise(4, sizes=((12, 16), (16, 12)))
    batch = next(iter(make_loader(source, batch_size=4, train=False, pad_to=(16, 18))))
    assert batch["image"].shape == (4, 16, 18, 3)
    assert batch["size"].tolist() == [[12, 16], [16, 12]] * 2
    for i, (height, width) in enumerate(batch["size"]):
        np.testing.assert_array_equal(batch["image"][i, :height, :width], source[i]["image"])
        np.testing.assert_array_equal(
            batch["image"][i, -1, width:], np.tile(batch["image"][i, -1, width - 1], (18 - width, 1))
        )
        assert (batch["boundaries"][i, height:] == -1).all()
        assert (batch["segmentation"][i, :, width:] == 255).all()


def test_dropped_labels() -> None:
    loader = make_loader(Noise(), batch_size=2, train=False, drop_labels=("segmentation",))
    assert set(next(iter(loader))) == {"image", "boundaries", "index", "valid", "size"}
    assert loader.spec.labels == ("boundaries",)
    with pytest.raises(UserError, match="did you mean 'segmentation'"):
        make_loader(Noise(), batch_size=2, train=False, drop_labels=("segmentations",))


class Boxed(Noise):
    """With a box around the middle."""

    spec = SourceSpec("boxed", {**Noise.spec.fields, "box": BOX})

    def __getitem__(self, index: int) -> Element:
        return super().__getitem__(index) | {"box": np.array([8, 6, 6, 6], np.float32)}


def test_a_dropped_box_is_cropped_around() -> None:
    """The same crops with and without the box in the batches."""
    ranges = GeometryRanges(crop=(8, 8), flip=True, box=BoxRanges("box", scale=0.3))
    whole = make_loader(Boxed(), batch_size=4, train=True, augment=ranges)
    less = make_loader(Boxed(), batch_size=4, train=True, augment=ranges, drop_labels=("box", "segmentation"))
    given, left = first(whole, 3), first(less, 3)
    assert set(given[0]) - set(left[0]) == {"box", "segmentation"}
    assert_equal([{name: batch[name] for name in left[0]} for batch in given], left)
    for name in ("boundaries", "none"):
        wrong = GeometryRanges(crop=(8, 8), box=BoxRanges(name))
        with pytest.raises(
            UserError, match=rf"augment\.box\.field: the source has no box '{name}'; valid: box"
        ):
            make_loader(Boxed(), batch_size=1, train=True, augment=wrong)
    with pytest.raises(UserError, match="drop_labels: 'image' is no label; valid: boundaries, box"):
        make_loader(Boxed(), batch_size=1, train=True, drop_labels=("image",))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="batch_size = 0"):
        make_loader(Noise(), batch_size=0, train=True)
    with pytest.raises(UserError, match="no elements"):
        make_loader(Noise(0), batch_size=1, train=True)
    mixed = Noise(4, sizes=((12, 16), (16, 12)))
    with pytest.raises(UserError, match="different sizes"):
        next(iter(make_loader(mixed, batch_size=4, train=False)))
    with pytest.raises(UserError, match=r"larger than pad_to \(12, 16\)"):
        next(iter(make_loader(mixed, batch_size=4, train=False, pad_to=(12, 16))))
