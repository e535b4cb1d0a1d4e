"""Batches on their way to the devices: a thread loads and places the next ones while a step runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from dynpix_jax.core.errors import UserError
from dynpix_jax.data.workers import check_death
from dynpix_jax.training.sharding import put_batch

HostBatch = Mapping[str, np.ndarray]
_DEPTH = 2
"""Batches on the devices beside the one of the running step."""
_WAITED_SECONDS = 1e-3
"""A step that waited for longer has waited for its data."""

_CLOSE_SECONDS = 20
"""How long an end waits for the batch that is being loaded."""


class Batches(Protocol):
    """What training reads: a function of the step, so that a run continues anywhere without going back."""

    def start(self, step: int) -> Iterator[HostBatch]:
        """This process's part of the batches from that step on.

        Each has "image" (b, H, W, 3) uint8, labels, "valid" (b,), "index" (b,); see `sharding.local_rows`.
        """


_Placed = tuple[dict[str, jax.Array], np.ndarray]


class Fed(NamedTuple):
    """A batch on the devices, the ids of this process's elements, and the seconds that it was waited for."""

    batch: dict[str, jax.Array]
    ids: np.ndarray
    waited: float

    @property
    def late(self) -> bool:
        """Whether the step waited for its data."""
        return self.waited > _WAITED_SECONDS


class Feed:
    """Reads batches ahead.

    Attributes:
        image_shape: (H, W, 3) of the images.

    Raises:
        UserError: The first element cannot be read.
    """

    def __init__(self, batches: Batches, step: int, mesh: Mesh):
        self._mesh, self._step = mesh, step
        self._iterator = batches.start(step)
        first = self._load()
        self.image_shape: tuple[int, ...] = tuple(first["image"].shape[1:])
        self._queue: queue.Queue[_Placed | BaseException] = queue.Queue(_DEPTH)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first,), name="feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Fed:
        start = time.perf_counter()
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        return Fed(*found, time.perf_counter() - start)

    def close(self) -> None:
        """Ends the thread, and the loader's processes."""
        self._stopped.set()
        until = time.monotonic() + _CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)
        if (close := getattr(self._iterator, "close", None)) is not None:
            close()

    def _load(self) -> HostBatch:
        try:
            batch = next(self._iterator, None)
        except RuntimeError as error:
            check_death(error)
            raise
        if batch is None:
            raise UserError(
                f"config.data.train: no more elements at step {self._step}; the loader must repeat"
            )
        self._step += 1
        return batch

    def _run(self, first: HostBatch) -> None:
        try:
            for batch in chain([first], iter(self._load, None)):
                self._queue.put((put_batch(batch, self._mesh), np.asarray(batch["index"])))
                if self._stopped.is_set():
                    return
        except BaseException as error:  # raised where the batch would have been read
            self._queue.put(error)
