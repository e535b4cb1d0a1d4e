"""The report of an evaluation: one HTML file with everything inside, for phones too, light and dark."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dynpix_jax.core.errors import UserError
from dynpix_jax.tasks import Score, Task, all_scores
from dynpix_jax.visualization import report_page as page
from dynpix_jax.visualization.curves import CostPoint, CurveScores, accuracy_macs_figure, pr_figure
from dynpix_jax.visualization.exits import Exit, confidence_picture, correctness_picture, player_gif
from dynpix_jax.visualization.pictures import HEAT, heat_overlay, mask_picture, png_bytes
from dynpix_jax.visualization.steps import change_picture, choice_colours, choice_note, choice_picture
from dynpix_jax.visualization.task_pictures import Colour, TaskPictures


@dataclasses.dataclass(frozen=True)
class Budget:
    """One row of the table: what a training stage ended with.

    stage: its name. rho: target density, 1 without gates. density: measured; None without gates.
    macs: executed multiply-accumulates an image, mean. macs_open: the same with every gate open.
    scores: numbers by the names of `tasks.all_scores`.
    milliseconds: mode -> (median, 10th percentile, 90th percentile) of an image.
    curve: precision against recall, where the task has it.
    per_class: score -> one number a class, None where the class does not occur.
    exits: (MACs up to it, scores) of predictions that are made one after another, the last one too.
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

    @property
    def label(self) -> str:
        """Such as "gates, rho 0.7"; the stage alone without gates."""
        return self.stage if self.density is None else f"{self.stage}, rho {self.rho:g}"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one budget made of an image.

    label: the budget's. predictions: decoded, by task. ponder: stage -> (H, W) in [0, 1] and "total"; empty
    without gates. masks: block -> (h, w), 1 where it computed.
    earlier: predictions on the way to those, in order, of a network that works in steps.
    choices: where pixels choose -> (H, W) int, which of the example's ``choices`` each took.
    exits: of each of ``earlier`` and the prediction itself, of a network that tells how sure it is.
    """

    label: str
    predictions: Mapping[str, np.ndarray]
    ponder: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    earlier: Sequence[Mapping[str, np.ndarray]] = ()
    choices: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    exits: Sequence[Exit] = ()


@dataclasses.dataclass(frozen=True)
class Example:
    """An image of the report: photo uint8 (H, W, 3), its labels by task, and the answers.

    choices: names of the branches that pixels choose from. true_choices: (H, W) int, what they should choose
    by the labels; None where these do not tell.
    """

    name: str
    photo: np.ndarray
    truth: Mapping[str, np.ndarray]
    answers: Sequence[Answer]
    choices: tuple[str, ...] = ()
    true_choices: np.ndarray | None = None


def report_html(
    title: str,
    facts: Mapping[str, str],
    tasks: Mapping[str, Task],
    budgets: Sequence[Budget],
    examples: Sequence[Example],
    pictures: Mapping[str, TaskPictures],
) -> str:
    """The report as one HTML page.

    Args:
      title: the config's name.
      facts: what was evaluated, on what: name -> value, both shown as they are.
      tasks: what was predicted, by name; rows are compared by the first.
      budgets: the rows, at least one.
      examples: images with pictures; may be empty.
      pictures: how each task is drawn.
    """
    scores, better = all_scores(tasks), "Up" if next(iter(tasks.values())).higher_is_better else "Down"
    first = scores[0]
    points = [
        CostPoint(row.label, row.macs, row.scores[first.name], row.density is not None) for row in budgets
    ] + [
        CostPoint(f"{row.label}, exit {number}", macs, found[first.name], row.density is not None)
        for row in budgets
        for number, (macs, found) in enumerate(row.exits[:-1], 1)
    ]
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    parts = [
        f"<h1>{_text(title)}</h1>",
        page.INTRODUCTION,
        f"<dl>{rows}</dl>",
        "<h2>What each budget costs and reaches</h2>",
        _table(scores, budgets),
        page.TABLE_CAPTION.substitute(scores=_meanings(scores)),
        _class_tables(budgets, pictures),
        '<div class="wide">',
        _figure(
            accuracy_macs_figure(points, first.label),
            "Accuracy against computation",
            f"Each point is one row of the table. {better} is better, left is cheaper. Gates are worth it "
            "where a point lies to the left of the ungated one and hardly worse.",
        ),
        _curves(budgets),
        "</div>",
    ]
    if examples:
        parts += ["<h2>Images</h2>"]
        parts += [f"<p>{one.caption}</p>{_legend(one)}" for one in pictures.values()]
        parts += [page.PONDER_CAPTION] if _gated(examples) else []
        if names := next((example.choices for example in examples if example.choices), ()):
            chips = zip(names, choice_colours(len(names)), strict=True)
            parts.append(f"{page.CHOICE_CAPTION}{_chips(tuple(chips))}")
        parts += [_example(example, pictures) for example in examples]
    return page.PAGE.substitute(
        title=_text(title), style=page.STYLE.substitute(heat=_gradient()), body="\n".join(parts)
    )


def write_report(
    path: str | Path,
    title: str,
    facts: Mapping[str, str],
    tasks: Mapping[str, Task],
    budgets: Sequence[Budget],
    examples: Sequence[Example],
    pictures: Mapping[str, TaskPictures],
) -> None:
    """Writes `report_html`.

    Raises:
      UserError: a place where no file can be written.
    """
    text = report_html(title, facts, tasks, budgets, examples, pictures)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report {path}: {error.strerror or error}") from None


def _table(scores: Sequence[Score], budgets: Sequence[Budget]) -> str:
    modes = tuple(dict.fromkeys(mode for row in budgets for mode in row.milliseconds))
    heads = [
        "stage",
        "target rho",
        "density",
        "MACs / image",
        *(_text(score.label) for score in scores),
        *(f"{mode}, ms" for mode in modes),
    ]
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for row in budgets:
        share = "" if row.density is None else f"<small>{row.macs / row.macs_open:.0%} of gates open</small>"
        cells = [
            f"<th>{_text(row.stage)}</th>",
            f"<td>{row.rho:g}</td>",
            f"<td>{'no gates' if row.density is None else f'{row.density:.3f}'}</td>",
            f"<td>{row.macs / 1e9:.3g} &times; 10<sup>9</sup>{share}</td>",
            *(f"<td>{score.text(row.scores[score.name], fewer=1)}</td>" for score in scores),
        ]
        for mode in modes:
            if mode in row.milliseconds:
                median, low, high = row.milliseconds[mode]
                cells.append(f"<td>{median:.3g}<small>{low:.3g} &ndash; {high:.3g}</small></td>")
            else:
                cells.append("<td>&ndash;</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _meanings(scores: Sequence[Score]) -> str:
    """What the columns of scores mean, as list items."""
    return "\n".join(f"<li><b>{_text(one.label)}</b>: {_text(one.meaning)}.</li>" for one in scores)


def _class_tables(budgets: Sequence[Budget], pictures: Mapping[str, TaskPictures]) -> str:
    """The scores of every class, a table a score and a column a budget; "" without classes."""
    # One task at most has classes, so far.
    names = [name for one in pictures.values() for name, _ in one.legend]
    tables = []
    for score in budgets[0].per_class:
        lines = ["<tr><th>class</th>" + "".join(f"<th>{_text(row.label)}</th>" for row in budgets) + "</tr>"]
        for index in range(len(budgets[0].per_class[score])):
            values = [row.per_class[score][index] for row in budgets]
            cells = ["&ndash;" if value is None else f"{value:.3f}" for value in values]
            name = names[index] if index < len(names) else str(index)
            lines.append(f"<tr><th>{_text(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
        tables.append(f"<details><summary>{_text(score)} of every class</summary>{table}</details>")
    return "".join(tables)


def _curves(budgets: Sequence[Budget]) -> str:
    """Precision against recall of the budgets that have it; "" where none has."""
    curves = {row.label: row.curve for row in budgets if row.curve is not None}
    if not curves:
        return ""
    return _figure(
        pr_figure(curves if len(curves) > 1 else next(iter(curves.values()))),
        "Precision against recall",
        "Recall: share of the annotated boundary pixels that were found. Precision: share of the found "
        "ones that an annotator drew. Moving the threshold moves along the curve; the dot is the "
        "threshold with the best F (ODS). Grey lines join points of equal F.",
    )


def _legend(pictures: TaskPictures) -> str:
    return _chips(pictures.legend)


def _chips(legend: Sequence[tuple[str, Colour]]) -> str:
    chips = [f'<span><i style="background: rgb{colour}"></i>{_text(name)}</span>' for name, colour in legend]
    return f'<p class="classes">{"".join(chips)}</p>' if chips else ""


def _example(example: Example, pictures: Mapping[str, TaskPictures]) -> str:
    notes = {task: one.note(example.truth[task]) for task, one in pictures.items()}

    def tile(task: str, values: np.ndarray, title: str) -> str:
        title = title if len(pictures) == 1 else f"{title}, {task}"
        drawn = pictures[task].picture(values, example.truth[task], example.photo)
        return _figure(drawn, title, notes[task])

    truth = "".join(tile(task, values, "Ground truth") for task, values in example.truth.items())
    if example.true_choices is not None:
        drawn = choice_picture(example.true_choices, len(example.choices))
        truth += _figure(drawn, "Choices by the labels", choice_note(example.true_choices, example.choices))
    parts = [
        f"<h3>{_text(example.name)}</h3>",
        f'<div class="tiles">{_figure(example.photo, "Photo")}{truth}</div>',
    ]
    for answer in example.answers:
        total = answer.ponder.get("total")
        tiles = [tile(task, values, "Prediction") for task, values in answer.predictions.items()]
        if total is not None:
            note = f"{total.mean():.0%} of the layers computed at the average pixel"
            tiles.append(_figure(heat_overlay(example.photo, total), "Ponder map, all stages", note))
        parts.append(f'<h4>{_text(answer.label)}</h4><div class="tiles">{"".join(tiles)}</div>')
        if answer.earlier:
            tiles = [_change(example, answer, step, pictures) for step in range(len(answer.earlier) + 1)]
            parts.append("<details open><summary>Prediction after each step, and what it changed</summary>")
            parts.append(f'<div class="tiles small">{"".join(tiles)}</div></details>')
        if answer.exits:
            parts.append("<details open><summary>How sure each exit is, where it is right (white) or wrong ")
            parts.append("(black), and what is not computed any more (green)</summary>")
            parts.append(f'<div class="tiles small">{_exits(example, answer, pictures)}</div></details>')
        if answer.choices:
            tiles = [
                _figure(
                    choice_picture(chosen, len(example.choices)), place, choice_note(chosen, example.choices)
                )
                for place, chosen in answer.choices.items()
            ]
            parts.append("<details open><summary>What pixels chose</summary>")
            parts.append(f'<div class="tiles small">{"".join(tiles)}</div></details>')
        if answer.ponder:
            tiles = [
                _figure(heat_overlay(example.photo, shares), f"Ponder map, {stage}", f"{shares.mean():.0%}")
                for stage, shares in answer.ponder.items()
                if stage != "total"
            ]
            parts.append(f"<details><summary>Ponder map of each stage</summary>{page.LEGEND}")
            parts.append(f'<div class="tiles small">{"".join(tiles)}</div></details>')
        if answer.masks:
            tiles = [
                _figure(mask_picture(mask), block, f"{np.mean(mask):.0%}", crisp=True)
                for block, mask in answer.masks.items()
            ]
            parts.append("<details><summary>Mask of each block (white: computed; %: density)</summary>")
            parts.append(f'<div class="tiles small">{"".join(tiles)}</div></details>')
    return f"<section>{''.join(parts)}</section>"


def _change(example: Example, answer: Answer, step: int, pictures: Mapping[str, TaskPictures]) -> str:
    """The predictions of a step, each with what changed since the step before."""
    steps = [*answer.earlier, answer.predictions]
    tiles = []
    for task, one in pictures.items():
        reference, name = example.truth[task], "" if len(pictures) == 1 else f", {task}"
        drawn = one.picture(steps[step][task], reference, example.photo)
        tiles.append(_figure(drawn, f"Step {step}{name}"))
        if step:
            before, after = steps[step - 1][task], steps[step][task]
            changed, note = change_picture(before, after, one, reference, example.photo)
            tiles.append(_figure(changed, f"Changed by step {step}{name}", note))
    return "".join(tiles)


def _exits(example: Example, answer: Answer, pictures: Mapping[str, TaskPictures]) -> str:
    """Figure 5 of the anytime paper, and the predictions as they come: by the first task."""
    task, one = next(iter(pictures.items()))
    truth, steps = example.truth[task], [step[task] for step in (*answer.earlier, answer.predictions)]
    # Maps of classes are right or wrong at a pixel; joints are not.
    classes = np.issubdtype(truth.dtype, np.integer) and truth.ndim == 2
    low = min(float(exit.confidence.min()) for exit in answer.exits)
    high = max(float(exit.confidence.max()) for exit in answer.exits)
    tiles = []
    for number, (exit, step) in enumerate(zip(answer.exits, steps, strict=True), 1):
        drawn = confidence_picture(exit.confidence, low, high)
        tiles.append(_figure(drawn, f"Exit {number}, confidence", f"{low:.3g} to {high:.3g}"))
        if classes:
            ignored = (truth < 0) | (truth >= 255)
            note = "" if exit.skipped is None else f"{exit.skipped.mean():.0%} skipped from here on"
            drawn = correctness_picture(step, truth, ignored, exit.skipped)
            tiles.append(_figure(drawn, f"Exit {number}, right or wrong", note))
    drawn_steps = [one.picture(step, truth, example.photo) for step in steps]
    frames = [np.stack([d] * 3, -1) if d.ndim == 2 else d for d in drawn_steps]
    film = player_gif(example.photo, frames, [exit.macs for exit in answer.exits])
    data = base64.b64encode(film).decode("ascii")
    caption = "<b>As it comes</b> <small>four seconds for all MACs</small>"
    image = f'<img alt="Predictions as they come" src="data:image/gif;base64,{data}">'
    return "".join(tiles) + f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _figure(picture: np.ndarray | Figure, title: str, note: str = "", *, crisp: bool = False) -> str:
    data = base64.b64encode(png_bytes(picture)).decode("ascii")
    style = ' class="crisp"' if crisp else ""
    note = f" <small>{_text(note)}</small>" if note else ""
    image = f'<img{style} alt="{_text(title)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption><b>{_text(title)}</b>{note}</figcaption></figure>"


def _gated(examples: Sequence[Example]) -> bool:
    return any(answer.ponder for example in examples for answer in example.answers)


def _gradient() -> str:
    """The colours of `HEAT` as the stops of a CSS gradient."""
    colours = matplotlib.colormaps[HEAT]
    return ", ".join(to_hex(colours(step / 8)) for step in range(9))


def _text(value: str) -> str:
    return html.escape(str(value))
