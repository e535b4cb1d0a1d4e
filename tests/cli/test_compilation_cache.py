"""The persistent compilation cache of the programs: where it is, and what turns it off."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dynpix_jax.cli.compilation_cache import add_cache_argument, use_compilation_cache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new user's cache; the process's own settings come back."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def use(*arguments: str) -> str | None:
    """The folder that jax uses after the program's start."""
    parser = argparse.ArgumentParser()
    add_cache_argument(parser)
    use_compilation_cache(parser.parse_args(arguments))
    enabled = jax.config.jax_enable_compilation_cache
    return jax.config.jax_compilation_cache_dir if enabled else None


def test_a_folder_of_the_user_without_what_is_old(cache_home: Path) -> None:
    folder = cache_home / "dynpix_jax" / "compiled"
    assert use() == str(folder)
    for name, age in (("old", 31), ("new", 29)):
        (folder / name).touch()
        os.utime(folder / name, times=(0, (folder / name).stat().st_mtime - age * 86400))
    jax.config.update("jax_compilation_cache_dir", None)
    assert use() == str(folder)
    assert [file.name for file in folder.iterdir()] == ["new"]


def test_switched_off_or_elsewhere(cache_home: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", "elsewhere")  # as JAX_COMPILATION_CACHE_DIR does
    assert use() == "elsewhere"
    jax.config.update("jax_compilation_cache_dir", None)
    assert use("--no-compilation-cache") is None
    assert use() is None  # as JAX_ENABLE_COMPILATION_CACHE=false leaves it
    assert not cache_home.exists()


def test_a_folder_that_cannot_be_made_stops_nothing(
    cache_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_home.write_text("a file")
    assert use() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no compilation cache, every start compiles anew: ")
    assert str(cache_home) in line
