"""What all entry points share: their help, and how an error ends the program."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from dynpix_jax.core.errors import DISK_ERRORS, UserError, cause_of

EXIT_USER_ERROR = 2
"""Status after a user's mistake; argparse ends with the same."""
EXIT_INTERRUPTED = 130
"""Status after Ctrl-C: 128 + SIGINT, as shells have it."""


def help_of(text: str | None) -> dict[str, Any]:
    """A parser's help from its program's docstring: what it does, then "example:" and what follows."""
    what, *example = re.split(r"^(?=examples?:$)", text or "", maxsplit=1, flags=re.MULTILINE)
    form = argparse.RawDescriptionHelpFormatter
    return {"description": what.strip(), "epilog": "".join(example), "formatter_class": form}


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds --set: changes of config values."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config values"
    )


def call(prog: str, fn: Callable[[], int | None]) -> int:
    """Run `fn` and give its exit status (None counts as 0).

    The current folder is the last one that modules are imported from: configs name users' classes as
    "module:Name".

    A `UserError` becomes one line on stderr, "prog: message", and status 2, and so does a disk that is full
    or cannot be written. Any other exception is a bug and passes through with its traceback.
    """
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
    try:
        status = fn() or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more when it flushes stdout at exit.
        _give_up_stdout()
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = "standard output" if error.filename is None else os.fspath(error.filename)
        print(f"{prog}: {where}: {cause_of(error)}", file=sys.stderr)
        _give_up_stdout()
        return EXIT_USER_ERROR


def _give_up_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_main(fn: Callable[[], int | None], prog: str | None = None) -> NoReturn:
    """End the process with the status of `fn`, in the manner of `call`: the last line of an entry point."""
    sys.exit(call(prog or os.path.basename(sys.argv[0]), fn))
