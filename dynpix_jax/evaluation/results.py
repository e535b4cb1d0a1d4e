"""What an eval.json says: the scores of a run's stages, and of which network they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import from_config
from dynpix_jax.data.geometry import GeometryRanges
from dynpix_jax.evaluation.inference import InferenceConfig
from dynpix_jax.tasks import Task


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
    """Those of the tasks that have one, by task."""
    found = {name: task.delta_score for name, task in tasks.items()}
    return {name: DeltaScore(one.name, one.higher_is_better) for name, one in found.items() if one}


@dataclass(frozen=True)
class Measured:
    """A row of an eval.json.

    Attributes:
        scores: by the names of `tasks.all_scores`, of the mode that was run first.
        macs: executed, mean per image.
        data: such as "nyuv2 test, 654 images".
        file: the eval.json.
        stage: of training.
        tasks: their names, in the order of the scores.
        density: share of positions that gates compute; None without gates.
        milliseconds: mode -> median per image.
        delta_scores: task -> the score by which it counts in Δm.
    """

    scores: dict[str, float]
    macs: float
    data: str
    file: str
    stage: str
    tasks: tuple[str, ...]
    density: float | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    delta_scores: Mapping[str, DeltaScore] = field(default_factory=dict)

    def score(self, name: str) -> float | None:
        """A score by its name, or by task and name ("depth/rmse") whichever task comes first; None for one
        that there is not.
        """
        return self.scores.get(name, self.scores.get(name.removeprefix(f"{self.tasks[0]}/")))


@dataclass(frozen=True)
class Identity:
    """What a row of an eval.json is the result of; how long and with which seed it was trained is no part.

    Attributes:
        source: name of the data set.
        network: the model section with the stage's overrides, as JSON.
        training: images per step and their augmentation, as JSON.
        views: those that images were predicted from, as JSON.
        alternative: of the network; "" for itself.
    """

    source: str
    network: str
    training: str
    views: str
    alternative: str = ""


@dataclass(frozen=True)
class Result:
    """A row of an eval.json with what it is the result of."""

    measured: Measured
    identity: Identity


def read_results(file: Path, *, alternatives: bool = False) -> list[Result]:
    """The rows of an eval.json, one a stage, and with ``alternatives`` those of other ways to run it, and of
    its exits.

    Raises:
        UserError: no such file, or one that eval.py did not write.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = []
        for row in content["rows"]:
            own = not row.get("alternative")
            if own or alternatives:
                found.append(_result(file, content, row))
            if own and alternatives:
                found += _exits(found[-1], row.get("exits") or ())
        return found
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise UserError(f"{file} is not what eval.py writes ({type(error).__name__}: {error})") from None


def identity_of(
    config: Mapping[str, Any], stage: Mapping[str, Any], source: str, alternative: str = ""
) -> Identity:
    """What a stage of a config is, evaluated on a data set; defaults are filled in."""
    network = _overridden(config["model"], stage.get("model") or {})
    augment = ((config.get("data") or {}).get("train") or {}).get("augment") or {}
    ranges = from_config(GeometryRanges, augment, "config.data.train.augment")
    inference = (config.get("evaluation") or {}).get("inference") or {}
    views = from_config(InferenceConfig, inference, "config.evaluation.inference")
    training = {"images": config["training"].get("batch_size"), "augment": asdict(ranges)}
    return Identity(
        source,
        json.dumps(network, sort_keys=True),
        json.dumps(training),
        json.dumps(asdict(views)),
        alternative,
    )


def _result(file: Path, content: Mapping[str, Any], row: Mapping[str, Any]) -> Result:
    stages = {stage["name"]: stage for stage in content["config"]["training"]["stages"]}
    first = next(iter(row["modes"].values()))
    measured = Measured(
        {name: float(value) for name, value in first.items() if isinstance(value, int | float)},
        float(row["macs_per_image"]),
        content["data"],
        str(file),
        row["stage"],
        tuple(row["tasks"]),
        row.get("density"),
        {mode: one["milliseconds"] for mode, one in row["modes"].items() if "milliseconds" in one},
        {task: DeltaScore(**entry) for task, entry in row.get("delta_scores", {}).items()},
    )
    source = content["data"].split(",")[0].split()[0]
    alternative = row.get("alternative") or ""
    return Result(measured, identity_of(content["config"], stages[row["stage"]], source, alternative))


def _exits(last: Result, exits: Sequence[Mapping[str, float]]) -> list[Result]:
    """Predictions on the way as alternatives "exit_1", ..., and "exit_mean", the means over all of them."""
    rows = {f"exit_{number}": dict(one) for number, one in enumerate(exits, 1)}
    if rows:
        common = set.intersection(*(set(one) for one in exits))
        rows["exit_mean"] = {name: sum(one[name] for one in exits) / len(exits) for name in common}
    found = []
    for name, scores in rows.items():
        macs = scores.pop("macs_per_image")
        measured = replace(last.measured, macs=macs, scores=scores, density=None, milliseconds={})
        found.append(Result(measured, replace(last.identity, alternative=name)))
    return found


def _overridden(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes that reach into its sections."""
    changed = dict(section)
    for name, value in changes.items():
        inside = changed.get(name)
        if isinstance(inside, Mapping) and isinstance(value, Mapping):
            value = _overridden(inside, value)
        changed[name] = value
    return changed
