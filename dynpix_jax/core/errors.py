"""The error for users' mistakes, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Of a disk that is full or cannot be written, whatever was to be written there."""


class UserError(Exception):
    """A mistake in what the user gave us: a config key, a path, a file, an argument.

    The message is one line that names the thing, where it is, and what was expected. The command line prints
    it and exits with status 2; there is never a traceback. Mistakes in code (wrong array shapes) raise
    `ValueError` instead.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def suggest(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name and the list of all: "did you mean 'x'? valid: a, b".

    Without a near name only the list is given; without any valid name "no names are valid here".
    """
    names = sorted(valid)
    if not names:
        return "no names are valid here"
    listing = f"valid: {', '.join(names)}"
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"did you mean '{folded[near[0]]}'? {listing}" if near else listing


def cause_of(error: BaseException) -> str:
    """Why the system refused, in its own words: "No space left on device"."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore tells the number of the system's error in its text.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {str(error)[:200]}"
