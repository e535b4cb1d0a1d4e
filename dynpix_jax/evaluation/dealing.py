"""Which process and which device evaluates which images, and how all come to the same sums."""

from __future__ import annotations

import collections
import concurrent.futures
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flax import serialization

from dynpix_jax.core.processes import gather

Given = TypeVar("Given")
Found = TypeVar("Found")
Worker = TypeVar("Worker")
Sums = Mapping[str, Any]
"""A tree of dicts of arrays."""


def share_of(batches: int, first: int, index: int, processes: int) -> range:
    """The batches of a process: consecutive ones, so that all together are in the order of the source.

    Args:
        batches: How many there are.
        first: So many at least go to process 0, which draws pictures of them.
        index: The process.
        processes: How many there are.
    """
    ends = [0, *(max(-(-batches * end // processes), min(first, batches)) for end in range(1, processes + 1))]
    return range(ends[index], ends[index + 1])


def all_sums(mine: Sums) -> list[Sums]:
    """The sums of each process, in their order; a collective."""
    return [serialization.msgpack_restore(one) for one in gather(serialization.msgpack_serialize(dict(mine)))]


def in_turns(
    workers: Sequence[Worker], call: Callable[[Worker, Given], Found], items: Iterable[Given]
) -> Iterator[tuple[Given, Found]]:
    """Each item with what a worker has found for it, in the order of the items; workers in threads."""
    if len(workers) == 1:
        for item in items:
            yield item, call(workers[0], item)
        return
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(item: Given) -> Found:
        worker = idle.get()
        try:
            return call(worker, item)
        finally:
            idle.put(worker)

    pool = concurrent.futures.ThreadPoolExecutor(len(workers))
    waiting: collections.deque[tuple[Given, concurrent.futures.Future[Found]]] = collections.deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > len(workers):
                given, found = waiting.popleft()
                yield given, found.result()
        while waiting:
            given, found = waiting.popleft()
            yield given, found.result()
    finally:
        pool.shutdown(cancel_futures=True)
