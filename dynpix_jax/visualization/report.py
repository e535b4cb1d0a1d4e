"""The report of an evaluation: one HTML file with everything inside, for phones too, light and dark."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from dynpix_jax.tasks import Score, Task, all_scores
from dynpix_jax.visualization import html
from dynpix_jax.visualization import report_page as page
from dynpix_jax.visualization.curves import CostPoint, CurveScores, accuracy_macs_figure, pr_figure
from dynpix_jax.visualization.example import Example, Pictures, example_html
from dynpix_jax.visualization.steps import choice_colours


@dataclasses.dataclass(frozen=True)
class ChanceBudget:
    """A network whose gates' masks are replaced by some that know nothing of the image.

    Attributes:
        density: Measured.
        macs: Executed multiply-accumulates an image, mean.
        scores: Numbers by the names of `tasks.all_scores`.
    """

    density: float | None
    macs: float
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Budget:
    """One row of the table: the network at the end of a training stage.

    Attributes:
        stage: Its name.
        rho: Target density, 1 without gates.
        density: Measured; None without gates.
        macs: Executed multiply-accumulates an image, mean.
        macs_open: The same with every gate open.
        scores: Numbers by the names of `tasks.all_scores`.
        milliseconds: Mode -> (median, 10th percentile, 90th percentile) of an image.
        curve: Precision against recall, where the task has it.
        per_class: Score -> one number a class, None where the class does not occur.
        exits: (MACs up to it, scores) of predictions that are made one after another, the last one, too.
        chance: The same network with masks of chance: what they are, and its numbers.
    """

    stage: str
    rho: float
    density: float | None
    macs: float
    macs_open: float
    scores: Mapping[str, float]
    milliseconds: Mapping[str, tuple[float, float, float]]
    curve: CurveScores | None = None
    per_class: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    exits: Sequence[tuple[float, Mapping[str, float]]] = ()
    chance: Mapping[str, ChanceBudget] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Such as "gates, rho 0.7"; the stage alone without gates, or where its name says rho."""
        gated = self.density is not None
        return f"{self.stage}, rho {self.rho:g}" if gated and not self._tells_rho else self.stage

    @property
    def _tells_rho(self) -> bool:
        """Whether the words of the stage's name are this very rho, which is then not said twice."""
        return re.search(rf"rho ?{re.escape(f'{self.rho:g}')}(?![\d.])", self.stage) is not None

    @property
    def with_chance(self) -> list[Budget]:
        """This row, and one for each kind of masks of chance, without times and curves."""
        return [self] + [
            Budget(f"  {kind} masks", self.rho, one.density, one.macs, self.macs_open, one.scores, {})
            for kind, one in self.chance.items()
        ]


def report_html(
    title: str,
    facts: Mapping[str, str],
    tasks: Mapping[str, Task],
    budgets: Sequence[Budget],
    examples: Sequence[Example],
    pictures: Pictures,
) -> str:
    """The report as one HTML page.

    Args:
        title: The config's name.
        facts: What was evaluated, on what: name -> value, both shown as they are.
        tasks: What was predicted, by name; rows are compared by the first.
        budgets: The rows, at least one.
        examples: Images with pictures; may be empty.
        pictures: How each task is drawn.
    """
    scores, better = all_scores(tasks), "Up" if next(iter(tasks.values())).higher_is_better else "Down"
    first = scores[0]
    rows = "".join(f"<dt>{html.text(name)}</dt><dd>{html.text(value)}</dd>" for name, value in facts.items())
    parts = [
        f"<h1>{html.text(title)}</h1>",
        page.INTRODUCTION,
        f"<p><strong>{html.text(line)}</strong></p>" if (line := outcome(scores[0], budgets)) else "",
        f"<dl>{rows}</dl>",
        "<h2>What each budget costs and reaches</h2>",
        _table(scores, budgets),
        page.TABLE_CAPTION.substitute(scores=_meanings(scores)),
        *(f"<p>{html.text(line)}</p>" for line in chance_lines(first, budgets)),
        _class_tables(budgets, tasks, pictures),
        '<div class="wide">',
        html.figure(
            accuracy_macs_figure(_cost_points(budgets, first.name), first.label),
            "Accuracy against computation",
            f"Each point is one row of the table. {better} is better, left is cheaper. Gates are worth it "
            "where a point lies to the left of the ungated one and hardly worse.",
        ),
        _curves(budgets),
        "</div>",
        *_images(examples, pictures),
    ]
    style = page.STYLE.substitute(heat=html.heat_gradient())
    return page.PAGE.substitute(title=html.text(title), style=style, body="\n".join(parts))


def outcome(score: Score, budgets: Sequence[Budget]) -> str:
    """What the last network with gates saves against the last without, one sentence; "" without either."""
    plain = [row for row in budgets if row.density is None]
    gated = [row for row in budgets if row.density is not None]
    if not plain or not gated:
        return ""
    before, after = plain[-1], gated[-1]
    saved = 1 - after.macs / before.macs
    amount = f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'} MACs"
    change = after.scores[score.name] - before.scores[score.name]
    line = f"{after.label}: {amount} than {before.label}, {score.label} {change:+.3f}"
    if "sparse" in after.milliseconds and "dense" in before.milliseconds:
        faster = before.milliseconds["dense"][0] / after.milliseconds["sparse"][0]
        line += f", {faster:.2f} times as fast"
    return f"{line}."


def chance_lines(score: Score, budgets: Sequence[Budget]) -> list[str]:
    """A sentence for each row with masks of chance: are the learned ones worth more?

    Args:
        score: What rows are compared by.
        budgets: The rows; the first without gates is what gating is measured against.
    """
    sign = 1.0 if score.higher_is_better else -1.0
    ungated = next((row.scores[score.name] for row in budgets if row.density is None), None)
    lines = []
    for row in budgets:
        if not row.chance:
            continue
        learned = row.scores[score.name]
        best = max((one.scores[score.name] for one in row.chance.values()), key=lambda value: sign * value)
        gain = sign * (learned - best)
        if gain <= 0:
            verdict = "these gates have learnt nothing about the single image"
        elif ungated is None or sign * (ungated - best) <= 0:
            verdict = f"choosing is worth {gain:.4f}"
        else:
            cost, of_chance = sign * (ungated - learned), sign * (ungated - best)
            verdict = (
                f"gating costs {cost:.4f}, {cost / of_chance:.0%} of the {of_chance:.4f} that chance costs"
            )
        found = ", ".join(f"{kind} {score.text(one.scores[score.name])}" for kind, one in row.chance.items())
        lines.append(f"{row.label}, {score.label}: learned masks {score.text(learned)}, {found}: {verdict}.")
    return lines


def _table(scores: Sequence[Score], budgets: Sequence[Budget]) -> str:
    modes = tuple(dict.fromkeys(mode for row in budgets for mode in row.milliseconds))
    heads = [
        "stage",
        "target rho",
        "density",
        "MACs / image",
        *(html.text(score.label) for score in scores),
        *(f"{mode}, ms" for mode in modes),
    ]
    rows = [_row(row, scores, modes) for budget in budgets for row in budget.with_chance]
    return html.table([[f"<th>{head}</th>" for head in heads], *rows])


def _row(row: Budget, scores: Sequence[Score], modes: Sequence[str]) -> list[str]:
    share = "" if row.density is None else f"<small>{row.macs / row.macs_open:.0%} of gates open</small>"
    cells = [
        f"<th>{html.text(row.stage)}</th>",
        f"<td>{row.rho:g}</td>",
        f"<td>{'no gates' if row.density is None else f'{row.density:.3f}'}</td>",
        f"<td>{row.macs / 1e9:.3g} &times; 10<sup>9</sup>{share}</td>",
        *(
            f"<td>{score.text(row.scores[score.name], fewer=1)}</td>"
            if score.name in row.scores
            else "<td>&ndash;</td>"
            for score in scores
        ),
    ]
    for mode in modes:
        if mode in row.milliseconds:
            median, low, high = row.milliseconds[mode]
            cells.append(f"<td>{median:.3g}<small>{low:.3g} &ndash; {high:.3g}</small></td>")
        else:
            cells.append("<td>&ndash;</td>")
    return cells


def _meanings(scores: Sequence[Score]) -> str:
    """The meaning of each column of scores, as list items."""
    return "\n".join(f"<li><b>{html.text(one.label)}</b>: {html.text(one.meaning)}.</li>" for one in scores)


def _class_tables(budgets: Sequence[Budget], tasks: Mapping[str, Task], pictures: Pictures) -> str:
    """The scores of every class, a table for each score and a column for each budget; "" without classes."""
    first, *others = tasks
    tables = []
    for score in budgets[0].per_class:
        # Scores of all tasks but the first carry their task's name (`tasks.all_scores`).
        task = next((name for name in others if score.startswith(f"{name}/")), first)
        names = [name for name, _ in pictures[task].legend]
        lines = [["<th>class</th>", *(f"<th>{html.text(row.label)}</th>" for row in budgets)]]
        for index in range(len(budgets[0].per_class[score])):
            values = [row.per_class[score][index] for row in budgets]
            cells = ["&ndash;" if value is None else f"{value:.3f}" for value in values]
            name = names[index] if index < len(names) else str(index)
            lines.append([f"<th>{html.text(name)}</th>", *(f"<td>{cell}</td>" for cell in cells)])
        summary = f"<summary>{html.text(score)} of every class</summary>"
        tables.append(f"<details>{summary}{html.table(lines)}</details>")
    return "".join(tables)


def _cost_points(budgets: Sequence[Budget], score: str) -> list[CostPoint]:
    """Rows and their exits on the curve of accuracy against computation."""
    points = [CostPoint(row.label, row.macs, row.scores[score], row.density is not None) for row in budgets]
    points += [
        CostPoint(kind, one.macs, one.scores[score], chance=True)
        for row in budgets
        for kind, one in row.chance.items()
    ]
    return points + [
        CostPoint(f"{row.label}, exit {number}", macs, found[score], row.density is not None)
        for row in budgets
        for number, (macs, found) in enumerate(row.exits[:-1], 1)
    ]


def _curves(budgets: Sequence[Budget]) -> str:
    """Precision against recall of the budgets that have it; "" where none has."""
    curves = {row.label: row.curve for row in budgets if row.curve is not None}
    if not curves:
        return ""
    return html.figure(
        pr_figure(curves if len(curves) > 1 else next(iter(curves.values()))),
        "Precision against recall",
        "Recall: share of the annotated boundary pixels that were found. Precision: share of the found "
        "ones that an annotator drew. Moving the threshold moves along the curve; the dot is the "
        "threshold with the best F (ODS). Grey lines join points of equal F.",
    )


def _images(examples: Sequence[Example], pictures: Pictures) -> list[str]:
    """The images with the meaning of their colours; [] without images."""
    if not examples:
        return []
    parts = ["<h2>Images</h2>"]
    parts += [f"<p>{one.caption}</p>{html.chips(one.legend)}" for one in pictures.values()]
    if any(prediction.ponder for example in examples for prediction in example.predictions):
        parts.append(page.PONDER_CAPTION)
    if names := next((example.choices for example in examples if example.choices), ()):
        legend = zip(names, choice_colours(len(names)), strict=True)
        parts.append(f"{page.CHOICE_CAPTION}{html.chips(legend)}")
    return parts + [example_html(example, pictures) for example in examples]
