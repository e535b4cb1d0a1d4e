"""Every implementation that a config can name, in an evaluation: predictions of dense mode, or the reason."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import EvaluationConfig, Implementation
from dynpix_jax.core.trees import map_named
from dynpix_jax.data.sources import build_source
from dynpix_jax.evaluation.evaluator import evaluate_system
from dynpix_jax.flops import variable_shapes
from dynpix_jax.ops.sparse import interpreted
from tests.tiny_systems import ANYTIME

SIZE = (32, 48)
SECTIONS = {
    "pag": dict(
        system="pag",
        task="segmentation",
        task_options=dict(classes=8),
        backbone=dict(depth=26, width=4),
        head_features=4,
        drop_blocks=6,
        gate=dict(kind="pixel", scope="residual"),
    ),
    "anytime": ANYTIME | dict(task_options=dict(classes=8), exits=(3, 4)),
}


def evaluated(name, implementation, mode="both"):
    """An evaluation of random variables."""
    system = papers.build(SECTIONS[name])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path.endswith(("var", "scale", "lam")):
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.normal(0, max(np.prod(leaf.shape[:-1]), 4) ** -0.5, leaf.shape), leaf.dtype)

    source = build_source({"name": "scenes", "size": SIZE, "length": 2, "fields": ("segmentation",)}, "val")
    settings = EvaluationConfig(mode=mode, pictures=1)
    variables = map_named(draw, variable_shapes(system))
    return evaluate_system(system, variables, source, settings, implementation=implementation)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", get_args(Implementation))
@pytest.mark.parametrize("name", SECTIONS)
def test_it_runs(name, implementation):
    with interpreted():
        found = evaluated(name, implementation)
    assert 0 < found.density < 1
    [(_, images)] = found.seen
    dense, sparse = (images[mode].outputs.predictions["segmentation"] for mode in ("dense", "sparse"))
    np.testing.assert_allclose(sparse, dense, rtol=1e-3, atol=1e-4 * np.abs(dense).max())


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_without_its_device_it_says_why(implementation):
    platform = implementation.removeprefix("pallas_")
    reason = f"'{implementation}' cannot run: it needs {platform}, the platform is {jax.default_backend()}"
    with pytest.raises(UserError, match=f"{reason}; these can: masked, gather"):
        evaluated("pag", implementation, mode="sparse")
