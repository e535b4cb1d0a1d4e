"""What the processes of a job must have in common, compared before anything is trained."""

from __future__ import annotations

import hashlib
import secrets
import time
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dynpix_jax
from dynpix_jax.core.config import RunConfig, settings
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.merging import leaves
from dynpix_jax.core.processes import compare, from_first, gather, here, is_first, several

_APPEAR_SECONDS = 15
"""How long a file may take to be seen by other hosts: network file systems remember what was not there."""


def check_same_job(run: RunConfig, mesh: Mesh) -> None:
    """Sees that all processes have the same code, settings, devices and mesh.

    Raises:
        UserError: Names the first difference.
    """
    if not several():
        return
    devices = np.vectorize(lambda at: at.id)(mesh.devices).tolist()
    facts = {
        "the version of dynpix_jax": f"{dynpix_jax.__version__} ({code_digest()})",
        "the version of jax": jax.__version__,
        **{
            f"config.{path}": repr(value)
            for path, value in leaves(settings(run))
            if not path.endswith("root")
        },
        "the number of devices": str(jax.device_count()),
        "the kind of devices": jax.devices()[0].device_kind,
        "the mesh": str(devices),
    }
    compare("job", facts)
    _meet(mesh)


def _meet(mesh: Mesh) -> None:
    """The first collective over each axis and over both, while no process is ahead of others.

    On CPUs Gloo waits for 30 s at the first one, and processes may differ by more when they have compiled.
    """
    gather(b"-")
    for axes in (mesh.axis_names, *mesh.axis_names):
        rows = np.zeros(mesh.size, np.float32)
        split = NamedSharding(mesh, PartitionSpec(axes))
        placed = jax.make_array_from_callback(rows.shape, split, rows.__getitem__)
        jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(placed).block_until_ready()


def check_shared(workdir: Path) -> None:
    """Sees that a folder, which process 0 has made, is the same one for all processes.

    Raises:
        UserError: It is not; on a disk of each host its checkpoints would never be complete.
    """
    if not several():
        return
    name = from_first("workdir", f".shared-{secrets.token_hex(8)}")
    file = workdir / name
    if is_first():
        file.touch()
    compare("workdir written", {})
    until = time.monotonic() + _APPEAR_SECONDS
    while not (seen := file.exists()) and time.monotonic() < until:
        time.sleep(0.5)
    if not seen:
        raise UserError(
            f"workdir {workdir}: {here()} does not see what process 0 writes there;"
            " all processes need one --workdir on a shared disk"
        )
    compare("workdir seen", {})
    if is_first():
        file.unlink()


@cache
def code_digest() -> str:
    """A short digest of this package's source files."""
    root, digest = Path(dynpix_jax.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
