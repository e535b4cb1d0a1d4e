"""From a source to batches: a grain pipeline, reproducible element by element.

The order of elements is grain's (shuffled anew every epoch); what a batch holds is a pure function of (seed,
step): element `index` in epoch `epoch` is augmented by a generator seeded with (seed, epoch, index). So the
number of workers, the number of processes and interruptions change nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import grain
import numpy as np
from absl import flags

from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.memory import physical_memory
from dynpix_jax.core.source import Element, Source, SourceSpec, groups_of
from dynpix_jax.data.geometry import augment
from dynpix_jax.data.workers import end_with_parent, remove_quietly

Batch = dict[str, np.ndarray]
_SMALL = 256
"""Elements of a batch that any machine can hold."""


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches of a source.

    Attributes:
        batches: By their number.
        steps_per_epoch: Batches in one pass over the source: for training rounded down (at least 1), for
            evaluation up.
        spec: What the elements hold, less the dropped labels. Batches have besides `valid` bool (B,), False
            for padding, and `size` int32 (B, 2), the (H, W) of each image before `pad_to`.
        workers: Processes that load them; 0 loads with threads in this one.
        threads: Number of threads that read batches ahead.
    """

    batches: grain.MapDataset
    spec: SourceSpec
    steps_per_epoch: int
    workers: int = 0
    threads: int = 2

    def start(self, step: int = 0) -> grain.DatasetIterator[Batch]:
        """The batches from number ``step`` on, whose predecessors are not loaded."""
        ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * self.threads)
        dataset = self.batches[step:].to_iter_dataset(ahead)
        if self.workers:
            # grain 0.2.17 and 0.2.18 read an absl flag here, which raises in programs that are not absl apps
            # (google/grain issue 1355).
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            remove_quietly()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self.workers), end_with_parent)
        return iter(dataset)

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        return self.start()


def make_loader(
    source: Source,
    *,
    batch_size: int,
    seed: int = 0,
    train: bool,
    augment: GeometryRanges | None = None,
    workers: int = 0,
    pad_to: tuple[int, int] | None = None,
    drop_labels: tuple[str, ...] = (),
    rows: Sequence[int] | None = None,
    threads: int = 2,
) -> Loader:
    """Builds the loader of a source.

    Args:
        source: Elements to load. A training batch is of one of its groups (`core.source.groups_of`).
        batch_size: Elements in a batch of all processes together.
        seed: Random seed of the order and the augmentation.
        train: True shuffles and repeats without end. False goes through the source once, in order; the last
            batch is filled up with elements that have `valid` False, index -1 and nothing but ignored labels.
        augment: Ranges of the joint geometry and of the colours; None leaves elements as they are.
        workers: Processes that load batches; 0 loads with threads in this one.
        pad_to: (H, W) to which smaller images are padded at the bottom and right (image: border repeated,
            labels: ignored). Needed where a batch has images of different sizes.
        drop_labels: Names of fields not to hand out.
        rows: The places in a batch of the elements that this process loads; None for all.
        threads: Number of threads that read batches ahead.

    Raises:
        UserError: A batch size below 1, an empty source, an unknown label to drop, a box to crop around that
            is none; while iterating, images of different sizes in a batch or larger than `pad_to`, and
            whatever the source raises.
    """
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: expected at least 1")
    if augment is not None and augment.box is not None:
        boxes = [name for name, field in source.spec.fields.items() if field.kind == "box"]
        if augment.box.field not in boxes:
            name = augment.box.field
            raise UserError(f"augment.box.field: the source has no box {name!r}; {suggest(name, boxes)}")
    if "image" in drop_labels:
        raise UserError(f"drop_labels: 'image' is no label; {suggest('image', source.spec.labels)}")
    size = len(source)
    if not size:
        raise UserError(f"source {source.spec.name!r} has no elements")
    _check_memory(source, batch_size if rows is None else len(rows))
    load = _LoadBatch(
        source=source,
        spec=source.spec.without(drop_labels),
        seed=seed,
        augment=augment,
        pad_to=pad_to,
        rows=tuple(range(batch_size) if rows is None else rows),
    )
    # The pipeline is one of element ids, which cost nothing; a whole batch is loaded in one call at its end.
    # So batches are formed before `to_iter_dataset`, and are the same for any number of workers.
    if train:
        steps = max(1, size // batch_size)
        places = _shuffled(groups_of(source), seed, batch_size)
    else:
        steps = -(-size // batch_size)
        ids = grain.MapDataset.range(steps * batch_size)
        places = ids.map_with_index(_Place(size, train)).batch(batch_size)
    return Loader(places.map(load), load.spec, steps, workers, threads)


def _check_memory(source: Source, count: int) -> None:
    """Refuses a batch of which no three fit into memory: some are read ahead."""
    if count <= _SMALL:
        return
    size = count * sum(value.nbytes for value in source[0].values())
    held = physical_memory()
    if held and 3 * size > held:
        raise UserError(
            f"batch_size = {count}: a batch of {source.spec.name!r} takes {size / 1e9:,.1f} GB, and some are "
            f"read ahead; there are {held / 1e9:,.1f} GB"
        )


def _shuffled(groups: tuple[tuple[int, float], ...], seed: int, batch_size: int) -> grain.MapDataset:
    """Endless batches of places, each of one group of elements, the groups in turns by their weights.

    groups: number of elements and weight of each; they follow each other in the source.
    """
    parts, first = [], 0
    for number, (size, _) in enumerate(groups):
        # Endless in practice. grain's own endless repeat overflows when batches of one are counted.
        ids = grain.MapDataset.range(first, first + size).shuffle(seed=(seed + number) % 2**32)
        parts.append(ids.repeat(2**40 // size).map_with_index(_Place(size, train=True)).batch(batch_size))
        first += size
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.mix(parts, weights=[weight for _, weight in groups])


@dataclasses.dataclass(frozen=True)
class _Place:
    """Turns (position in the stream, element id) into (epoch, id), with id -1 for what is beyond the
    source.
    """

    size: int
    train: bool

    def __call__(self, position: int, element_id: int) -> np.ndarray:
        if self.train:
            return np.array([position // self.size, element_id], np.int64)
        return np.array([0, element_id if element_id < self.size else -1], np.int64)


@dataclasses.dataclass(frozen=True)
class _LoadBatch:
    """Loads this process's part of a batch of places (B, 2): epoch and element id."""

    source: Source
    spec: SourceSpec
    seed: int
    augment: GeometryRanges | None
    pad_to: tuple[int, int] | None
    rows: tuple[int, ...]

    def __call__(self, places: np.ndarray) -> Batch:
        elements = [
            self._element(int(epoch), int(element_id)) for epoch, element_id in places[list(self.rows)]
        ]
        shapes = {element["image"].shape[:2] for element in elements}
        if len(shapes) > 1:
            raise UserError(
                f"source {self.spec.name!r} has images of different sizes in one batch, {sorted(shapes)}: "
                "crop them (augment.crop), set pad_to, or use batch_size 1"
            )
        return {name: np.stack([element[name] for element in elements]) for name in elements[0]}

    def _element(self, epoch: int, element_id: int) -> Element:
        # Padding is a real element with its labels blanked: the network sees finite, ordinary pixels.
        element = self.source[max(element_id, 0)]
        # A box may be dropped, too, but the crop is made around it.
        box = None if self.augment is None or self.augment.box is None else self.augment.box.field
        element = {name: element[name] for name in element if name in self.spec.fields or name == box}
        if self.augment is not None:
            rng = np.random.default_rng([self.seed % 2**32, epoch, max(element_id, 0)])
            element = augment(rng, self.augment, element, self.source.spec)
        element = {name: element[name] for name in self.spec.fields}
        shape = element["image"].shape[:2]
        if self.pad_to is not None:
            element = pad_element(element, self.spec, self.pad_to)
        if element_id < 0:
            element = blank_labels(element, self.spec)
        return element | {
            "valid": np.array(element_id >= 0),
            "index": np.array(element_id, np.int64),
            "size": np.array(shape, np.int32),
        }


def pad_element(element: Element, spec: SourceSpec, size: tuple[int, int]) -> Element:
    """Pads the fields of an element to (H, W) at the bottom and right: image repeated, labels ignored.

    Raises:
        UserError: The image is larger than `size`.
    """
    height, width = element["image"].shape[:2]
    bottom, right = size[0] - height, size[1] - width
    if min(bottom, right) < 0:
        raise UserError(f"source {spec.name!r}: an image of {height} x {width} is larger than pad_to {size}")
    out = dict(element)
    for name, value in element.items():
        field = spec.fields[name]
        if field.kind == "image":
            out[name] = cv2.copyMakeBorder(value, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        elif field.dense:
            pads = ((0, bottom), (0, right)) + ((0, 0),) * (value.ndim - 2)
            out[name] = np.pad(value, pads, constant_values=_blank(field.ignore))
    return out


def blank_labels(element: Element, spec: SourceSpec) -> Element:
    """The element with every label ignored (keypoints: invisible)."""
    return {
        name: value
        if spec.fields[name].kind in ("image", "scalar")
        else np.full_like(value, _blank(spec.fields[name].ignore))
        for name, value in element.items()
    }


def _blank(ignore: float | None) -> float:
    return 0.0 if ignore is None else ignore
