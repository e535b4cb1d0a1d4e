"""Puts the tables of docs/results/*.json into docs/results.md, where the page names their files.

    python -m tools.results_page

A table stands between <!-- results/NAME.json --> and <!-- end -->, as `dynpix reproduce --kept --markdown`
prints it, so that no number in the page can drift from what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dynpix_jax.cli import main as dynpix
from dynpix_jax.cli.common import run_main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BLOCK = re.compile(r"(?<=^<!-- )(results/\S+\.json)( -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)


def filled(page: str, folder: Path) -> str:
    """The page with each block's table as its file in `folder` has it now."""
    return BLOCK.sub(lambda block: block[1] + block[2] + tables(folder / block[1]), page)


def tables(file: Path) -> str:
    """The tables of a file in Markdown.

    Raises:
        RuntimeError: They cannot be printed; why stands on stderr.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if status := dynpix.main(["reproduce", "--kept", str(file), "--markdown"]):
            raise RuntimeError(f"{file}: exit status {status}")
    return printed.getvalue().rstrip("\n") + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(sys.argv[1:] if argv is None else argv)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), PAGE.parent), encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
