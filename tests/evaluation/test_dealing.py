"""Images dealt out to processes and devices: each once, in order, and the same scores whatever the number."""

from __future__ import annotations

import threading
import time

import jax
import numpy as np
import pytest

from dynpix_jax.core.processes import on_device
from dynpix_jax.evaluation.dealing import all_sums, in_turns, share_of


@pytest.mark.parametrize(("batches", "first"), [(10, 0), (10, 8), (3, 0), (1, 8), (200, 8)])
@pytest.mark.parametrize("processes", [1, 2, 4, 7])
def test_every_batch_once_in_order(batches: int, first: int, processes: int) -> None:
    shares = [share_of(batches, first, index, processes) for index in range(processes)]
    assert [number for share in shares for number in share] == list(range(batches))
    assert len(shares[0]) >= min(max(first, 1), batches)
    if first * processes <= batches:
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_workers_take_turns_and_results_keep_their_order() -> None:
    busy: dict[str, threading.Lock] = {"a": threading.Lock(), "b": threading.Lock(), "c": threading.Lock()}
    used = set()

    def call(worker: str, item: int) -> int:
        assert busy[worker].acquire(blocking=False)  # one item at a time
        used.add(worker)
        time.sleep(0.002 * (item % 3))
        busy[worker].release()
        return item**2

    for workers in (["a"], ["a", "b", "c"]):
        assert list(in_turns(workers, call, range(20))) == [(item, item**2) for item in range(20)]
    assert used == {"a", "b", "c"}


def test_an_error_of_a_worker_is_raised_here() -> None:
    def call(worker: str, item: int) -> int:
        return 1 // (item - 2)

    with pytest.raises(ZeroDivisionError):
        list(in_turns(["a", "b"], call, range(5)))


def test_sums_keep_their_bits() -> None:
    sums = {"a": {"b": np.array([0.1, 2**53 + 0.0]), "c": np.int64(2**62)}, "nothing": {}}
    (found,) = all_sums(sums)
    np.testing.assert_array_equal(found["a"]["b"], sums["a"]["b"])
    assert found["a"]["b"].dtype == np.float64
    assert int(found["a"]["c"]) == 2**62
    assert found["nothing"] == {}


def test_variables_on_a_device() -> None:
    (device,) = jax.local_devices()[:1]
    found = on_device({"a": np.ones(3), "b": jax.numpy.ones(2)}, device)
    assert {leaf.device for leaf in jax.tree.leaves(found)} == {device}
