"""The processes of one job: how they find each other, learn of each other's errors, and end together.

A process that waits for others in a collective cannot be told anything. So each has a thread, the watch,
that talks to the coordinator (process 0) through jax's key-value store: it gives a sign of life every second,
reads whether another process has failed, and ends its own with a line that says who failed and why. Nothing
is half-saved by that: a checkpoint counts when its manifest is there, which is written last.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NoReturn
from unittest import mock

import jax
import numpy as np

# Not public: neither the store, nor which platforms jax knows, nor the timeouts of its client.
from jax._src import clusters, distributed
from jax._src.lib import _jax
from jax.experimental import multihost_utils

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.typing import Variables

DEAD_SECONDS = 30.0
"""Without a sign of life for so long, a process counts as dead."""
WAIT_SECONDS = 300
"""How long processes wait for each other at the start, and at the end."""
_BEAT_SECONDS = 1.0
_FINISH_SECONDS = 10
"""How long an end waits for work such as a checkpoint that is being written."""
_LOST_PEER = re.compile("gloo|nccl|connection|socket|unavailable|peer|deadline", re.IGNORECASE)
"""In errors of collectives whose other side has gone."""

_watch: _Watch | None = None
_unfinished: set[Future[None]] = set()
_number = count()
"""Makes names of the store unique; all processes use them in the same order."""


def start(how: str) -> None:
    """Makes this process one of a job, before jax computes anything.

    Args:
        how: "auto": if the platform tells of a job (Cloud TPU, Slurm, Open MPI, an indexed job of
            Kubernetes); "off"; or "HOST:PORT,N,I": the address of process 0, how many there are, which one
            this is.

    Raises:
        UserError: Another text, or a job that does not come together.
    """
    global _watch
    if how == "off" or distributed.global_state.client is not None or (how == "auto" and not _on_cluster()):
        return
    address, processes, index = (None, None, None) if how == "auto" else parse_address(how)
    # By itself the client waits for two minutes for an answer of a host that is down.
    client = partial(_jax.get_distributed_runtime_client, rpc_timeout=20)
    try:
        with mock.patch.object(_jax, "get_distributed_runtime_client", client):
            jax.distributed.initialize(address, processes, index, initialization_timeout=WAIT_SECONDS)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--distributed={how}: {error}") from error
    if distributed.global_state.num_processes > 1:
        _watch = _Watch()
        _watch.start()


def parse_address(text: str) -> tuple[str, int, int]:
    """("HOST:PORT", N, I) of "HOST:PORT,N,I".

    Raises:
        UserError: Another text, a process that is none of N, a host without an address.
    """
    found = re.fullmatch(r"([^\s,]+):(\d+),(\d+),(\d+)", text)
    if found is None:
        raise UserError(
            f"--distributed={text}: expected auto, off or HOST:PORT,N,I such as localhost:1234,2,0"
        )
    host, port, count, index = found[1], int(found[2]), int(found[3]), int(found[4])
    if not 0 < port < 65536:
        raise UserError(f"--distributed={text}: no port {port}; expected 1 to 65535")
    if index >= count:
        raise UserError(f"--distributed={text}: no process {index} of {count}; they count from 0")
    try:
        socket.getaddrinfo(host.strip("[]"), port)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--distributed={text}: host {host}: {error}") from None
    return f"{host}:{port}", count, index


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def _client() -> Any:
    """The client of the coordinator, whose type is not public."""
    return distributed.global_state.client


def several() -> bool:
    """Whether there are other processes, with a store that all can read."""
    return distributed.global_state.client is not None and distributed.global_state.num_processes > 1


def compare(name: str, facts: dict[str, str]) -> None:
    """Sees that all processes have the same facts; each waits for the others.

    Raises:
        UserError: Names the first fact that differs, and both values.
    """
    if not several():
        return
    client, key = _client(), f"dynpix/{next(_number)}/{name}"
    if is_first():
        client.key_value_set(key, json.dumps({"host": socket.gethostname(), **facts}))
    theirs = json.loads(client.blocking_key_value_get(key, 1000 * WAIT_SECONDS))
    host = theirs.pop("host")
    for fact in facts:
        if theirs.get(fact) != facts[fact]:
            raise UserError(
                f"processes differ: {fact} is {theirs.get(fact)} on process 0 ({host}) and {facts[fact]} on"
                f" {here()}"
            )
    client.wait_at_barrier(f"{key}/barrier", 1000 * WAIT_SECONDS)


def from_first(name: str, value: str = "") -> str:
    """The value that process 0 has given under a name."""
    client, key = _client(), f"dynpix/{next(_number)}/{name}"
    if is_first():
        client.key_value_set(key, value)
    found: str = client.blocking_key_value_get(key, 1000 * WAIT_SECONDS)
    return found


def gather(content: bytes) -> list[bytes]:
    """What each process has given, in their order; a collective."""
    if jax.process_count() == 1:
        return [content]
    # Gloo waits for half a minute at the first collective of a kind, and some processes may have more to do.
    _client().wait_at_barrier(f"dynpix/{next(_number)}/gather", 12 * 1000 * WAIT_SECONDS)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(content)], np.int32))).reshape(-1)
    filled = np.zeros(int(sizes.max()), np.uint8)
    filled[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(filled)).reshape(len(sizes), -1)
    return [rows[index, :size].tobytes() for index, size in enumerate(sizes)]


def on_device(variables: Variables, device: jax.Device) -> Variables:
    """The whole of the variables on one device of this process; where they are split, a collective."""

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            if not leaf.is_fully_replicated:
                assert isinstance(leaf.sharding, jax.sharding.NamedSharding)  # of a training step
                everywhere = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
                leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
            parts = {shard.device: shard.data for shard in leaf.addressable_shards}
            leaf = parts.get(device, next(iter(parts.values())))
        return jax.device_put(leaf, device)

    placed: Variables = jax.tree.map(place, variables)
    return placed


def let_finish(work: Future[None]) -> None:
    """Work of another thread that an end of this process waits for, if it soon comes to its own."""
    _unfinished.add(work)
    work.add_done_callback(_unfinished.discard)


def here() -> str:
    """This process, for messages."""
    return f"process {distributed.global_state.process_id} ({socket.gethostname()})"


def end_at_sigterm() -> None:
    """SIGTERM interrupts a program that has nothing to save: jax's own handler only notes it."""
    if several():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def finish() -> None:
    """Ends the job with all processes: the last thing that a program does that went well."""
    global _watch
    if _watch is None:
        return
    # The watch goes on while others still work: they may fail.
    _client().wait_at_barrier("dynpix/end", 12 * 1000 * WAIT_SECONDS)
    _watch.stop()
    _watch = None
    jax.distributed.shutdown()


def fail(error: BaseException, message: str, status: int) -> None:
    """Tells the others that this process failed, after its own message was printed, and ends it.

    Returns only where there is no job. An error that comes of another process's end waits for the watch,
    which knows more.
    """
    if _watch is None:
        return
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST_PEER.search(str(error)):
        time.sleep(DEAD_SECONDS + 10)
    _watch.report(message, status)
    _watch.end(status)


@dataclass(frozen=True)
class _Failure:
    index: int
    host: str
    message: str
    status: int


class _Watch(threading.Thread):
    """Signs of life to the coordinator, and the end of this process when another one fails."""

    def __init__(self) -> None:
        super().__init__(name="watch", daemon=True)
        state = distributed.global_state
        self._client = _client()
        self._index, self._count = state.process_id, state.num_processes
        self._client.key_value_set(f"dynpix/host/{self._index}", socket.gethostname())
        # Later nobody may answer.
        self._hosts = {
            index: self._client.blocking_key_value_get(f"dynpix/host/{index}", 1000 * WAIT_SECONDS)
            for index in (0, self._index)
        }
        self._stopped, self._ending = threading.Event(), threading.Lock()
        self._beats: dict[str, tuple[str, float]] = {}
        # When the coordinator is gone jax's client aborts, before the watch could tell why.
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
        self._abort = handler(self._on_abort)  # kept as long as the handler is
        ctypes.CDLL(None).signal(signal.SIGABRT, self._abort)

    def run(self) -> None:
        """Looks around every second."""
        answered, number = time.monotonic(), 0
        while not self._stopped.wait(_BEAT_SECONDS):
            number += 1
            try:
                self._client.key_value_set(f"dynpix/alive/{self._index}", str(number), allow_overwrite=True)
                failure = self._failure()
                if failure is None and self._index == 0:
                    failure = self._dead()
                answered = time.monotonic()
            except Exception as error:  # whatever jax's client raises
                if self._stopped.is_set():
                    return
                if time.monotonic() - answered < DEAD_SECONDS / 3:
                    continue
                said = str(error).splitlines()[0][:100]
                failure = _Failure(0, self._hosts[0], f"the coordinator does not answer ({said})", 1)
            if failure is not None and failure.index != self._index:
                self._say(f"stopped: process {failure.index} ({failure.host}) failed: {failure.message}")
                self.end(failure.status)

    def stop(self) -> None:
        """Ends the watch alone."""
        self._stopped.set()
        self.join()

    def report(self, message: str, status: int, index: int | None = None) -> None:
        """Writes down that a process, this one by default, has failed; the first one counts."""
        index = self._index if index is None else index
        with suppress(Exception):  # another one was first, or nobody is there to be told
            failure = {"index": index, "host": self._host(index), "message": message, "status": status}
            self._client.key_value_set("dynpix/failed/first", json.dumps(failure))

    def end(self, status: int) -> NoReturn:
        """Ends this process at once; the coordinator waits until the others have heard why."""
        with self._ending:  # held for good: the first reason counts
            with suppress(Exception):
                self._client.key_value_set(f"dynpix/ended/{self._index}", "")
                until = time.monotonic() + 10
                while self._index == 0 and time.monotonic() < until:
                    if len(self._client.key_value_dir_get("dynpix/ended/")) == self._count:
                        break
                    time.sleep(0.2)
            self._exit(status)

    def _exit(self, status: int) -> NoReturn:
        wait(set(_unfinished), timeout=_FINISH_SECONDS)
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _on_abort(self, number: int) -> None:
        """Ends this process with a reason, if it is the coordinator's end; else it aborts."""
        host, _, port = (distributed.global_state.coordinator_address or "").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError as error:
            reason = f"the coordinator does not answer ({error})"
            self._say(f"stopped: process 0 ({self._hosts[0]}) failed: {reason}")
            self._exit(1)

    def _failure(self) -> _Failure | None:
        found = self._client.key_value_dir_get("dynpix/failed/")
        return _Failure(**json.loads(found[0][1])) if found else None

    def _dead(self) -> _Failure | None:
        """A process whose last sign of life is too long ago."""
        now = time.monotonic()
        seen = {key.rsplit("/", 1)[1]: beat for key, beat in self._client.key_value_dir_get("dynpix/alive/")}
        for index in map(str, range(self._count)):
            beat, since = self._beats.get(index, ("", now))
            self._beats[index] = (seen.get(index, ""), since if seen.get(index, "") == beat else now)
            if now - self._beats[index][1] > DEAD_SECONDS:
                message = f"no sign of life for {DEAD_SECONDS:.0f} s; it was killed, or its host is down"
                self.report(message, 1, int(index))
                self._client.key_value_set(f"dynpix/ended/{index}", "")
                return self._failure()
        return None

    def _host(self, index: int) -> str:
        found: str = self._hosts.get(index) or self._client.key_value_try_get(f"dynpix/host/{index}")
        return found

    def _say(self, text: str) -> None:
        print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _on_cluster() -> bool:
    """Whether jax knows the platform and it runs a job of several processes."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Kubernetes without its package
        # A pod of Kubernetes need not be one of several.
        single = set() if "JOB_COMPLETION_INDEX" in os.environ else {"K8sCluster"}
        return any(
            kind.__name__ not in single and not kind.opt_in_only_method and kind.is_env_present()
            for kind in clusters.ClusterEnv._cluster_types
        )
