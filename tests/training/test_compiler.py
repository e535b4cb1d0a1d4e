"""Options of XLA: what a compiler does not know is not asked of it."""

from __future__ import annotations

from dynpix_jax.core.settings import MeshConfig
from dynpix_jax.training.compiler import knows, step_options
from dynpix_jax.training.sharding import make_mesh


def test_a_cpu_has_no_options_of_a_tpu() -> None:
    mesh = make_mesh(MeshConfig(), 8)
    assert step_options(mesh) == {}
    assert not knows(mesh, ("xla_tpu_run_space_to_batch",))
    assert knows(mesh, ("xla_cpu_enable_fast_math",))
