"""Tables on the console: drawn by rich on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dynpix_jax.core.text import aligned
from dynpix_jax.tasks import Score
from dynpix_jax.visualization.report import Budget


def budget_table(scores: Sequence[Score], rows: Sequence[Budget]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of budgets; a missing value is "-"."""
    labels = [score.label for score in scores]
    heads = ["stage", "rho", "density", "MACs/image", "of open", *labels, "dense ms", "sparse ms"]
    cells = []
    for row in rows:
        # Without gates every position is computed.
        density = 1.0 if row.density is None else row.density
        known = {
            score.name: score.text(row.scores[score.name]) for score in scores if score.name in row.scores
        }
        cells.append(
            [
                row.stage,
                f"{row.rho:g}",
                f"{density:.3f}",
                f"{row.macs / 1e9:#.4g}e9",
                f"{row.macs / row.macs_open:.1%}",
                *(known.get(score.name, "-") for score in scores),
                *(
                    f"{row.milliseconds[mode][0]:.1f}" if mode in row.milliseconds else "-"
                    for mode in ("dense", "sparse")
                ),
            ]
        )
    return heads, cells


def exit_table(scores: Sequence[Score], row: Budget) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a row's exits, with the means of all (the paper's "Avg")."""
    heads = ["exit", "MACs/image", "MACs / 2^30", *(score.label for score in scores)]
    known = [score for score in scores if all(score.name in found for _, found in row.exits)]
    means = {score.name: sum(found[score.name] for _, found in row.exits) / len(row.exits) for score in known}
    lines = [(str(number), *one) for number, one in enumerate(row.exits, 1)]
    lines.append(("mean", sum(macs for macs, _ in row.exits) / len(row.exits), means))
    cells = [
        [
            name,
            f"{macs / 1e9:#.4g}e9",
            f"{macs / 2**30:.2f}",
            *(score.text(found[score.name]) if score.name in found else "-" for score in scores),
        ]
        for name, macs, found in lines
    ]
    return heads, cells


def markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells))


def print_markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Prints a table to stdout as Markdown."""
    print(markdown(heads, cells))


def print_table(heads: Sequence[str], cells: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Prints a table to stdout (or `console`): first column to the left, numbers to the right."""
    console = console or Console()
    if console.is_terminal:
        table = Table(*heads)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    print(aligned(heads, cells))
