"""How much memory this machine has, and how its programs keep theirs."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def physical_memory() -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def keep_freed_memory() -> bool:
    """Lets this process use freed memory again, where glibc would return it to the system.

    XLA allocates what a program needs on a CPU at each call. By default glibc returns such large blocks at
    once, and the system clears every page anew at the next call: up to a fifth of a ResNet-50's time. The
    process then keeps what it once needed. Programs of this package call it; in a script of your own, call it
    before the first array is made.

    Returns:
        Whether it was done: not without glibc, and not where the environment sets glibc's own options
        (``MALLOC_*`` or ``GLIBC_TUNABLES``).
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block is mapped on its own, none is returned, and all threads share one heap: others are limited to
    # 64 MiB.
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)))
