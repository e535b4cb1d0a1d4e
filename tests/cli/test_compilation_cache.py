"""The persistent compilation cache of the programs: where it is, and what turns it off."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest

from dynpix_jax.cli import demo, predict, train
from dynpix_jax.cli import eval as evaluate
from dynpix_jax.cli.compilation_cache import MIN_SECONDS, add_cache_argument, use_compilation_cache
from dynpix_jax.core.errors import UserError

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


def test_what_others_keep_or_remove_there_stops_nothing(
    cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jax keeps a folder for the choices of GPU kernels; another process cleans at the same time."""
    folder = cache_home / "dynpix_jax" / "compiled"
    kept = folder / "xla_gpu_per_fusion_autotune_cache_dir"
    kept.mkdir(parents=True)
    old = folder / "old"
    old.touch()
    for entry in (kept, old):
        os.utime(entry, times=(0, 0))
    listed = Path.iterdir
    gone = folder / "gone"
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([gone, *listed(self)]))
    assert use() == str(folder)
    assert kept.is_dir()
    assert not old.exists()


def test_the_bound_of_seconds_holds_in_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[-1]
    monkeypatch.delenv(name.upper(), raising=False)
    jax.config.update(name, 1.0)  # jax's default
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    use()
    assert jax.config.values[name] == MIN_SECONDS
    jax.config.update(name, 5.0)  # as jax reads its variable
    monkeypatch.setenv(name.upper(), "5")
    use()
    assert jax.config.values[name] == 5.0


@pytest.mark.parametrize("command", [train, evaluate, predict, demo])
def test_programs_use_it(command: ModuleType, cache_home: Path, tmp_path: Path) -> None:
    """Each begins with it: it is on, though none comes further than a workdir or config that is missing."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    required = {train: ["--config=missing.py"], predict: ["photo.jpg", "--out", str(tmp_path / "out")]}
    arguments = [*required.get(command, []), f"--workdir={tmp_path / 'missing'}"]
    with pytest.raises(UserError, match=r"missing|photo"):
        command.run(parser.parse_args(arguments))
    assert jax.config.values["jax_compilation_cache_dir"] == str(cache_home / "dynpix_jax" / "compiled")


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
