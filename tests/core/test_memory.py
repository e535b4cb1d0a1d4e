from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from dynpix_jax.core.memory import keep_freed_memory
kept = keep_freed_memory()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (256 << 20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(kept), faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's options")
@pytest.mark.parametrize("options", [{}, {"MALLOC_TOP_PAD_": "131072"}])
def test_freed_memory_is_used_again_unless_the_user_chooses(options):
    """256 MiB have 65,536 pages, which are new ones each time or none."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=unset | options, capture_output=True, text=True
    )
    kept, faults = map(int, done.stdout.split())
    assert kept == (not options)
    assert faults < 100 if kept else faults >= 100  # of 4 KiB, or huge ones of 2 MiB
