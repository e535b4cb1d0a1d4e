"""jax's persistent compilation cache: what a program has compiled, its next start reads."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path

import jax

MIN_SECONDS = 0.2
"""Programs that compile faster are not kept."""
DAYS = 30
"""Programs that are older are removed: nobody else would."""
_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that `use_compilation_cache` takes."""
    parser.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help="compile everything anew (default: a cache in $XDG_CACHE_HOME, that is ~/.cache)",
    )


def use_compilation_cache(args: argparse.Namespace) -> None:
    """Turns the cache on, in a folder of the user's, before anything is compiled.

    jax's own variables keep their meaning: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS another bound than `MIN_SECONDS`, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off, as ``--no-compilation-cache`` does. Where no folder can
    be written, a line on stderr says so.
    """
    if args.no_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return
    if _SECONDS.upper() not in os.environ:
        jax.config.update(_SECONDS, MIN_SECONDS)
    if settings["jax_compilation_cache_dir"]:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynpix_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        _remove_old(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        print(f"no compilation cache, every start compiles anew: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _remove_old(folder: Path) -> None:
    """Removes old programs; folders are jax's own (choices of GPU kernels), and others may clean, too."""
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found = entry.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > DAYS * 86400:
                entry.unlink()
