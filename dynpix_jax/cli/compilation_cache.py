"""jax's persistent compilation cache: what a program has compiled, its next start reads."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import jax

MIN_SECONDS = 0.2
"""Programs that compile faster are not kept."""
DAYS = 30
"""Entries that are older are removed: nobody else would."""


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
    JAX_ENABLE_COMPILATION_CACHE=false turns it off, as ``--no-compilation-cache`` does. Where no folder can
    be written, a line on stderr says so.
    """
    if args.no_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def _remove_old(folder: Path) -> None:
    for file in folder.iterdir():
        if time.time() - file.stat().st_mtime > DAYS * 86400:
            file.unlink(missing_ok=True)
