"""What all entry points share: their help, and how an error ends the program."""

from __future__ import annotations

import argparse
import io
import logging
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from dynpix_jax.core.errors import DISK_ERRORS, UserError, cause_of
from dynpix_jax.core.memory import keep_freed_memory

if multiprocessing.current_process().name.startswith("grain-"):
    # A process of the loader begins with the program that started it. Without jax, which grain would import
    # there and which reads no images, it starts in a fraction of the time.
    sys.modules["jax"] = None  # type: ignore[assignment]
    logging.disable()  # grain would tell so
    import grain  # noqa: F401

    logging.disable(logging.NOTSET)
    del sys.modules["jax"]

EXIT_USER_ERROR = 2
"""Status after a user's mistake; argparse ends with the same."""
EXIT_BUG = 1
"""Python's status after a traceback."""
EXIT_INTERRUPTED = 130
"""Status after Ctrl-C: 128 + SIGINT, as shells have it."""

CONFIG_HELP = "config file with its argument; one that ships needs no path, such as pag/camvid.py:rho=0.7"
EXTRA_OF = dict.fromkeys(
    ("absl", "array_record", "grain", "h5py", "tensorboardX", "tensorflow_datasets"), "train"
) | {"flatbuffers": "export", "wandb": "wandb"}
"""Package -> the extra of ours that brings it."""


def help_of(text: str | None) -> dict[str, Any]:
    """A parser's help from its program's docstring: what it does, then "example:" and what follows."""
    what, *example = re.split(r"^(?=examples?:$)", text or "", maxsplit=1, flags=re.MULTILINE)
    form = argparse.RawDescriptionHelpFormatter
    return {"description": what.strip(), "epilog": "".join(example), "formatter_class": form}


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds --set: changes of config values; --config.KEY=VALUE is the same (`respelled`)."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change config values; --config.KEY=VALUE is the same",
    )


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed, which `processes.start` takes."""
    parser.add_argument(
        "--distributed",
        default="auto",
        metavar="auto|off|HOST:PORT,N,I",
        help="several processes: auto (default), where the platform tells of them; or process I of N, with"
        " the address of process 0. See docs/pods.md",
    )


def respelled(argv: Sequence[str]) -> list[str]:
    """Arguments with --set=KEY=VALUE for --config.KEY=VALUE and --config.KEY VALUE."""
    words, found = iter(argv), []
    for word in words:
        if word.startswith("--config."):
            change = word.removeprefix("--config.")
            word = f"--set={change}" if "=" in change else f"--set={change}={next(words, '')}"
        found.append(word)
    return found


def main_of(
    command: str,
    text: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> Callable[[Sequence[str] | None], int]:
    """The main function of a program of its own that does what a subcommand of `dynpix` does."""

    def main(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(**help_of(text))
        add_arguments(parser)
        return run(parser.parse_args(respelled(sys.argv[1:] if argv is None else argv)))

    main.__doc__ = f"`dynpix {command}` with `argv` (the process's own by default)."
    return main


def call(prog: str, fn: Callable[[], int | None]) -> int:
    """Run `fn` and give its exit status (None counts as 0).

    The current folder is the last one that modules are imported from: configs name users' classes as
    "module:Name".

    A `UserError` becomes one line on stderr, "prog: message", and status 2, and so does a disk that is full
    or cannot be written, or memory, a device's too, that does not suffice. Any other exception is a bug and
    passes through with its traceback.

    In a job of several processes all end with the first that fails; see `core.processes`. From here on the
    process keeps the memory that it frees; see `core.memory`.
    """
    keep_freed_memory()
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
    logging.basicConfig()
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:  # this one, or that of a package
            handler.setFormatter(logging.Formatter(f"{prog}: %(message)s"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        status = fn() or 0
        sys.stdout.flush()
        if job := _job():
            job.finish()
        return status
    except (Exception, KeyboardInterrupt) as error:
        told = _told(error)
        if told is None:
            if job := _job():
                traceback.print_exc()
                job.fail(error, f"{type(error).__name__}: {error}".splitlines()[0], EXIT_BUG)
            raise
        message, status = told
        if message:
            print(f"{prog}: {message}", file=sys.stderr)
        if job := _job():
            job.fail(error, message, status)
        return status


def _job() -> ModuleType | None:
    """`core.processes` of a program that is one of several; it imports jax, which the loader's processes and
    `--help` do without.
    """
    module = sys.modules.get("dynpix_jax.core.processes")
    return module if module is not None and module.several() else None


def _told(error: BaseException) -> tuple[str, int] | None:
    """What the user is told of an error, and the exit status; None for a bug."""
    if isinstance(error, UserError):
        return str(error), EXIT_USER_ERROR
    if isinstance(error, ImportError) and (package := _missing_package(error)) in EXTRA_OF:
        extra = EXTRA_OF[package]
        return (
            f"needs {package}, which is not installed: pip install 'dynpix_jax[{extra}]'",
            EXIT_USER_ERROR,
        )
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}", EXIT_USER_ERROR
    if wanted := _device_memory(error):
        less = "training.batch_size, training.microbatches, training.remat, evaluation.batch_size, --max-side"
        return f"not enough memory: {wanted}; what makes it less: {less}", EXIT_USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) has gone. Python would complain once more when it flushes stdout at exit.
        _give_up_stdout()
        return "", 0
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        _give_up_stdout()
        where = "standard output" if error.filename is None else os.fspath(error.filename)
        return f"{where}: {cause_of(error)}", EXIT_USER_ERROR
    return None


def _device_memory(error: BaseException) -> str:
    """What jax says of a device whose memory does not suffice; "" for another error.

    Memory within a core (vmem), which a kernel plans for, is none that users can do anything about.
    """
    jax = sys.modules.get("jax")  # not imported here: `--help` does without
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return ""
    said = str(error).partition("\n")[0]
    found = re.search(r"RESOURCE_EXHAUSTED: (.*out of memory.*)", said, re.IGNORECASE)
    return found[1] if found and not re.search(r"memory space (?!hbm)", said) else ""


def _missing_package(error: ImportError) -> str:
    """The package that is not installed, also where a library raises an ImportError of its own; or ""."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__
    return "" if cause is None else str(cause.name).partition(".")[0]


def _give_up_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_main(fn: Callable[[], int | None], prog: str | None = None) -> NoReturn:
    """End the process with the status of `fn`, in the manner of `call`: the last line of an entry point."""
    sys.exit(call(prog or os.path.basename(sys.argv[0]), fn))
