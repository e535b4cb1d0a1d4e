"""The wheel as a release builds it: small, and with what an installation reads."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_is_small_and_holds_configs_and_networks(tmp_path):
    """Nothing is downloaded: the builder is among the locked packages."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 15e6
    names = set(zipfile.ZipFile(wheel).namelist())
    for config in (ROOT / "configs").rglob("*.py"):
        assert f"dynpix_jax/configs/{config.relative_to(ROOT / 'configs')}" in names
    networks = [f"dynpix_jax/networks/{name}" for name in ("boundaries", "scenes", "street")]
    for network in networks:
        assert {f"{network}.safetensors", f"{network}.md"} <= names
    assert {"dynpix_jax/py.typed", "dynpix_jax/papers/pag/tables.toml"} <= names
    # The package and its metadata alone.
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dynpix_jax"}
