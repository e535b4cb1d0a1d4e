"""An image of the report: photo, labels, and what each row of the table predicts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dynpix_jax.visualization import html, report_page
from dynpix_jax.visualization.exits import Exit, confidence_picture, correctness_picture, player_gif
from dynpix_jax.visualization.pictures import heat_overlay, mask_picture
from dynpix_jax.visualization.steps import change_picture, choice_note, choice_picture
from dynpix_jax.visualization.task_pictures import TaskPictures

Pictures = Mapping[str, TaskPictures]
"""How each task is drawn, by its name."""


@dataclass(frozen=True)
class RowPrediction:
    """What one row of the table predicts of an image.

    Attributes:
        label: The row's.
        by_task: Decoded predictions.
        ponder: Stage -> (H, W) in [0, 1], and "total"; empty without gates.
        masks: Block -> (h, w), 1 where it computed.
        earlier: Predictions before those, in order, of a network that works in steps.
        choices: Place where pixels choose -> (H, W) int, an index of the example's ``choices``.
        exits: Confidence and cost of each prediction, the last one, too, of a network with exits.
    """

    label: str
    by_task: Mapping[str, np.ndarray]
    ponder: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    earlier: Sequence[Mapping[str, np.ndarray]] = ()
    choices: Mapping[str, np.ndarray] = field(default_factory=dict)
    exits: Sequence[Exit] = ()

    @property
    def steps(self) -> list[Mapping[str, np.ndarray]]:
        """All predictions of a network that works in steps, in order."""
        return [*self.earlier, self.by_task]


@dataclass(frozen=True)
class Example:
    """An image of the report.

    Attributes:
        name: The image's.
        photo: uint8 (H, W, 3).
        truth: Its labels, by task.
        predictions: One for each row.
        choices: Names of the branches that pixels choose from.
        true_choices: (H, W) int, the branches that follow from the labels; None where none do.
    """

    name: str
    photo: np.ndarray
    truth: Mapping[str, np.ndarray]
    predictions: Sequence[RowPrediction]
    choices: tuple[str, ...] = ()
    true_choices: np.ndarray | None = None


def example_html(example: Example, pictures: Pictures) -> str:
    """The section of an image."""
    truth = [
        _task_tile(example, pictures, task, label, "Ground truth") for task, label in example.truth.items()
    ]
    if example.true_choices is not None:
        truth.append(_choice_tile(example, "Choices by the labels", example.true_choices))
    parts = [
        f"<h3>{html.text(example.name)}</h3>",
        html.tiles([html.figure(example.photo, "Photo"), *truth]),
        *(_prediction_html(example, prediction, pictures) for prediction in example.predictions),
    ]
    return f"<section>{''.join(parts)}</section>"


def _prediction_html(example: Example, prediction: RowPrediction, pictures: Pictures) -> str:
    figures = [
        _task_tile(example, pictures, task, values, "Prediction")
        for task, values in prediction.by_task.items()
    ]
    total = prediction.ponder.get("total")
    if total is not None:
        note = f"{total.mean():.0%} of the layers computed at the average pixel"
        figures.append(html.figure(heat_overlay(example.photo, total), "Ponder map, all stages", note))
    parts = [
        f"<h4>{html.text(prediction.label)}</h4>",
        html.tiles(figures),
        html.details(
            "Prediction after each step, and what it changed", _step_tiles(example, prediction, pictures)
        ),
        html.details(
            "How sure each exit is, where it is right (white) or wrong (black), and what is not computed any "
            "more (green)",
            _exit_tiles(example, prediction, pictures),
        ),
        html.details(
            "What pixels chose",
            [_choice_tile(example, place, chosen) for place, chosen in prediction.choices.items()],
        ),
        html.details(
            "Ponder map of each stage",
            [
                html.figure(
                    heat_overlay(example.photo, shares), f"Ponder map, {stage}", f"{shares.mean():.0%}"
                )
                for stage, shares in prediction.ponder.items()
                if stage != "total"
            ],
            legend=report_page.LEGEND,
            opened=False,
        ),
        html.details(
            "Mask of each block (white: computed; %: density)",
            [
                html.figure(mask_picture(mask), block, f"{np.mean(mask):.0%}", crisp=True)
                for block, mask in prediction.masks.items()
            ],
            opened=False,
        ),
    ]
    return "".join(parts)


def _task_tile(example: Example, pictures: Pictures, task: str, values: np.ndarray, title: str) -> str:
    reference, drawn = example.truth[task], pictures[task]
    title = title if len(pictures) == 1 else f"{title}, {task}"
    return html.figure(drawn.picture(values, reference, example.photo), title, drawn.note(reference))


def _choice_tile(example: Example, title: str, chosen: np.ndarray) -> str:
    picture = choice_picture(chosen, len(example.choices))
    return html.figure(picture, title, choice_note(chosen, example.choices))


def _step_tiles(example: Example, prediction: RowPrediction, pictures: Pictures) -> list[str]:
    """The prediction of each step, and what changed since the step before."""
    if not prediction.earlier:
        return []
    steps = prediction.steps
    figures = []
    for step, by_task in enumerate(steps):
        for task, drawn in pictures.items():
            reference, name = example.truth[task], "" if len(pictures) == 1 else f", {task}"
            figures.append(
                html.figure(drawn.picture(by_task[task], reference, example.photo), f"Step {step}{name}")
            )
            if step:
                before, after = steps[step - 1][task], by_task[task]
                changed, note = change_picture(before, after, drawn, reference, example.photo)
                figures.append(html.figure(changed, f"Changed by step {step}{name}", note))
    return figures


def _exit_tiles(example: Example, prediction: RowPrediction, pictures: Pictures) -> list[str]:
    """Figure 5 of the anytime paper and the predictions as a film, of the first task."""
    if not prediction.exits:
        return []
    task, drawn = next(iter(pictures.items()))
    truth, steps = example.truth[task], [step[task] for step in prediction.steps]
    # Maps of classes are right or wrong at a pixel; joints are not.
    has_classes = np.issubdtype(truth.dtype, np.integer) and truth.ndim == 2
    low = min(float(exit.confidence.min()) for exit in prediction.exits)
    high = max(float(exit.confidence.max()) for exit in prediction.exits)
    figures = []
    for number, (exit, step) in enumerate(zip(prediction.exits, steps, strict=True), 1):
        picture = confidence_picture(exit.confidence, low, high)
        figures.append(html.figure(picture, f"Exit {number}, confidence", f"{low:.3g} to {high:.3g}"))
        if has_classes:
            ignored = (truth < 0) | (truth >= 255)
            note = "" if exit.skipped is None else f"{exit.skipped.mean():.0%} skipped from here on"
            picture = correctness_picture(step, truth, ignored, exit.skipped)
            figures.append(html.figure(picture, f"Exit {number}, right or wrong", note))
    panels = [drawn.picture(step, truth, example.photo) for step in steps]
    frames = [np.stack([panel] * 3, -1) if panel.ndim == 2 else panel for panel in panels]
    gif = player_gif(example.photo, frames, [exit.macs for exit in prediction.exits])
    return [*figures, html.film(gif, "As it comes", "four seconds for all MACs")]
