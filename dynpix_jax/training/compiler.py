"""Options of XLA under which training steps are compiled."""

from __future__ import annotations

from functools import cache

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Where a chip has few images, XLA moves columns of the maps into the batch, around each convolution, and
# copies and pads every map for it (docs/accelerators.md has what it costs). Only all three together stop it.
_TPU = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_after_spmd": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


def step_options(mesh: Mesh) -> dict[str, bool]:
    """Options for the compiler of a mesh's devices; {} where there is nothing to say, or it knows none."""
    return dict(_TPU) if mesh.devices.flat[0].platform == "tpu" and knows(mesh, tuple(_TPU)) else {}


@cache
def knows(mesh: Mesh, options: tuple[str, ...]) -> bool:
    """Whether the compiler of a mesh's devices has switches of these names: versions of libtpu differ."""
    scalar = jax.ShapeDtypeStruct((), float, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        jax.jit(lambda x: x + 1).lower(scalar).compile(compiler_options=dict.fromkeys(options, False))
    except jax.errors.JaxRuntimeError:
        return False
    return True
