"""Settings for all tests: CPU, parsed flags, quick hypothesis runs, and the folder with real data."""

from __future__ import annotations

import os
from pathlib import Path

# Before jax is imported by any test. Set JAX_PLATFORMS to test on another device.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import pytest
from absl import flags

import train
from tests.tiny import TINY_CONFIG, TinyRun

ROOT = Path(__file__).resolve().parents[1]

# grain 0.2.18 reads an absl flag in `mp_prefetch` and raises if no absl app has parsed the command line
# (grain issue 1355).
flags.FLAGS.mark_as_parsed()

# Derandomized: a failure in one run is a failure in all, on every machine. No deadline: first
# calls compile.
hypothesis.settings.register_profile(
    "dynpix",
    deadline=None,
    derandomize=True,
    max_examples=15,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("dynpix")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny gated network, trained for two steps in each of two stages."""
    folder = tmp_path_factory.mktemp("tiny")
    run = TinyRun(folder / "tiny.py", folder / "run")
    run.config.write_text(TINY_CONFIG)
    assert train.main([f"--config={run.config}", f"--workdir={run.workdir}"]) == 0
    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and weights: $DYNPIX_SHARED, or `../shared` beside the repository."""
    folder = Path(os.environ.get("DYNPIX_SHARED", ROOT.parent / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip(
            f"real data not found at {folder}; set DYNPIX_SHARED to the folder that holds data/ and weights/"
        )
    return folder
