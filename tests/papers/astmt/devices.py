"""Three steps of a tiny ASTMT network on all devices there are: `python -m tests.papers.astmt.devices`."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dynpix_jax import papers
from dynpix_jax.core.settings import MeshConfig
from dynpix_jax.training.sharding import make_mesh, put_batch
from tests.one_step import QUICKLY
from tests.papers.astmt.tiny import (
    random_batch,
    random_variables,
    section,
    small_blocks,
    training_step,
)


def main() -> None:
    """Prints the metrics of each step."""
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        system = papers.build(section(adversarial=dict(weight=0.1)))
        step, state, _ = training_step(system, random_variables(system))
        mesh = make_mesh(MeshConfig(), 8)
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)
        state = jax.device_put(state, shardings)
        batch = put_batch({name: np.asarray(value) for name, value in random_batch(8).items()}, mesh)
        run = jax.jit(step, in_shardings=(shardings, None), out_shardings=(shardings, None))
        run = run.lower(state, batch).compile(compiler_options=QUICKLY)
        lines = []
        for _ in range(3):
            state, metrics = run(state, batch)
            lines.append({name: float(value) for name, value in metrics.items()})
    print(json.dumps({"devices": jax.device_count(), "lines": lines}))


if __name__ == "__main__":
    main()
