"""Reads eval.json files: the scores of a run's stages, and the identity of their networks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import to_json
from dynpix_jax.core.settings import StageConfig
from dynpix_jax.core.text import parse_json
from dynpix_jax.run_config import read_run
from dynpix_jax.tasks import Task
from dynpix_jax.weights.readers import SUFFIXES


@dataclass(frozen=True)
class DeltaScore:
    """The score by which a task counts in Δm.

    Attributes:
        score: Its name.
        higher_is_better: False for errors.
    """

    score: str
    higher_is_better: bool


def delta_scores(tasks: Mapping[str, Task | type[Task]]) -> dict[str, DeltaScore]:
    """Task -> the score by which it counts in Δm, without tasks that do not count."""
    found = {name: task.delta_score for name, task in tasks.items()}
    return {name: DeltaScore(one.name, one.higher_is_better) for name, one in found.items() if one}


EXIT = re.compile(r"exit_\d+")
"""Names of single exits among the alternatives of `read_results`."""
# The sentence of `EvaluatedData`. No split has a space in its name, a data set may.
_SENTENCE = re.compile(r"(?P<source>.+) \S+, \d+ images")


@dataclass(frozen=True)
class EvaluatedData:
    """What was evaluated; an eval.json has these fields.

    Attributes:
        source: Name of the data set.
        split: Such as "test".
        images: How many.
    """

    source: str
    split: str
    images: int

    def __str__(self) -> str:
        """Such as "nyuv2 test, 654 images"."""
        return f"{self.source} {self.split}, {self.images} images"


@dataclass(frozen=True)
class Measured:
    """A row of an eval.json.

    Attributes:
        scores: Scores under the names of `tasks.all_scores`, of the mode that was run first.
        macs: Executed, mean per image.
        data: Such as "nyuv2 test, 654 images".
        files: The eval.json; of networks for one task each, that of every one.
        stage: Training stage.
        tasks: Their names, in the order of the scores.
        density: Share of positions that gates compute; None without gates.
        milliseconds: Mode -> median per image.
        delta_scores: Task -> the score by which it counts in Δm.
        alternative: Alternative of the network; "" for itself.
        per_class: Score -> class -> value, None where the class does not occur; empty without classes.
        chance: Kind of chance -> scores with such masks (`evaluation.chance`); empty without.
        source: Name of the data set; "" where it is not known beside ``data``.
        step: Training step of the network, 0 of a file of weights; None where it is not known.
    """

    scores: dict[str, float]
    macs: float
    data: str
    files: tuple[str, ...]
    stage: str
    tasks: tuple[str, ...]
    density: float | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    delta_scores: Mapping[str, DeltaScore] = field(default_factory=dict)
    alternative: str = ""
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    chance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""
    step: int | None = None

    @property
    def file(self) -> str:
        """The files, for messages."""
        return ", ".join(self.files)

    def score(self, name: str) -> float | None:
        """A score by name or by task and name ("depth/rmse"), whichever task is first; None if missing."""
        return self.scores.get(name, self.scores.get(name.removeprefix(f"{self.tasks[0]}/")))

    def by_chance(self, kind: str) -> Measured:
        """The same row with its scores by masks of chance; without any if that kind was not scored."""
        return replace(self, scores=dict(self.chance.get(kind, {})))


def kinds_of_chance(rows: Iterable[Measured]) -> list[str]:
    """Kinds of chance that any row has scores of, such as "shuffled"."""
    return list(dict.fromkeys(kind for one in rows for kind in one.chance))


@dataclass(frozen=True)
class Identity:
    """Identity of the network behind a row of an eval.json; training length and seed are no part of it.

    Attributes:
        source: Name of the data set.
        network: The model section with the stage's overrides, as JSON.
        training: The split of the images, how many a step has, and their augmentation, as JSON.
        views: Those that images were predicted from, as JSON.
        alternative: Alternative of the network; "" for itself.
        continued: Whether the run began with the variables of another run, not with a file of weights.
    """

    source: str
    network: str
    training: str
    views: str
    alternative: str = ""
    continued: bool = False


def read_results(file: Path, *, alternatives: bool = False) -> list[Measured]:
    """The rows of an eval.json, one a stage; with ``alternatives`` also those of its alternatives and exits.

    Raises:
        UserError: No such file, or one that eval.py did not write.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        found = []
        for row in content["rows"]:
            own = not row.get("alternative")
            if own or alternatives:
                found.append(_measured(file, content, row))
            if own and alternatives:
                found += _exits(found[-1], row.get("exits") or ())
        return found
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise UserError(f"{file} is not what eval.py writes ({type(error).__name__}: {error})") from None


def evaluated_run(file: Path, step: int | None = None) -> RunConfig:
    """The settings that an eval.json has.

    Args:
        file: An eval.json.
        step: Training step that its last row must have; None for any.

    Raises:
        UserError: No such file, of another step, or settings that this version does not read.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        found, config = content["rows"][-1].get("step"), content["config"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is not what eval.py writes ({type(error).__name__}: {error})") from None
    if step not in (None, found):
        raise UserError(f"{file} is of step {found}; expected {step}")
    try:
        return read_run(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def identity_of(run: RunConfig, stage: StageConfig, source: str, alternative: str = "") -> Identity:
    """Identity of a run's stage evaluated on a data set, defaults included."""
    training = {
        "split": run.data.train.source.split,
        "images": run.training.batch_size,
        "augment": to_json(run.data.train.augment or GeometryRanges()),
    }
    parts = (stage.model, training, run.evaluation.inference)
    network, trained, views = (json.dumps(to_json(part), sort_keys=True) for part in parts)
    begins = run.training.init_from
    continued = bool(begins) and not begins.lower().endswith(SUFFIXES)
    return Identity(source, network, trained, views, alternative, continued)


def _measured(file: Path, content: Mapping[str, Any], row: Mapping[str, Any]) -> Measured:
    first = next(iter(row["modes"].values()))
    return Measured(
        {name: float(value) for name, value in first.items() if isinstance(value, int | float)},
        float(row["macs_per_image"]),
        content["data"],
        (str(file),),
        row["stage"],
        tuple(row["tasks"]),
        row.get("density"),
        {mode: one["milliseconds"] for mode, one in row["modes"].items() if "milliseconds" in one},
        {task: DeltaScore(**entry) for task, entry in row.get("delta_scores", {}).items()},
        row.get("alternative") or "",
        {
            prefix + score: dict(zip(first.get(f"{prefix}classes", ()), values, strict=False))
            for prefix in ("", *(f"{task}/" for task in row["tasks"]))
            for score, values in first.get(f"{prefix}per_class", {}).items()
        },
        row.get("chance", {}),
        content["source"] if "source" in content else _source_of(content["data"]),
        row.get("step"),
    )


def _source_of(data: str) -> str:
    """The data set of an eval.json of version 0.1, which has the sentence alone."""
    found = _SENTENCE.fullmatch(data)
    return found["source"] if found else data


def _exits(last: Measured, exits: Sequence[Mapping[str, float]]) -> list[Measured]:
    """Predictions on the way as alternatives "exit_1", ..., and "exit_mean", the means over all of them."""
    rows = {f"exit_{number}": dict(one) for number, one in enumerate(exits, 1)}
    if rows:
        common = set.intersection(*(set(one) for one in exits))
        rows["exit_mean"] = {name: sum(one[name] for one in exits) / len(exits) for name in common}
    found = []
    for name, scores in rows.items():
        macs = scores.pop("macs_per_image")
        unknown: dict[str, Any] = dict(density=None, milliseconds={}, per_class={}, chance={})
        found.append(replace(last, macs=macs, scores=scores, alternative=name, **unknown))
    return found
