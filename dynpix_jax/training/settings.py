"""The `training` section of a config as frozen dataclasses, and what a stage does to the model section.

A stage trains one form of the network for a number of steps with a fresh optimizer. What differs between
stages is declared: overrides of the model section, frozen parameters, learning-rate multipliers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import ml_collections

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.system import System


def _check_patterns(name: str, patterns: Any) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: '{pattern}' is not a regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as a (`data`, `model`) grid. -1 for `data` takes all devices that `model` leaves.

    `rules` places parameters on the model axis: (regex of the parameter path, dimension to split); what no
    rule matches is replicated.
    """

    data: int = -1
    model: int = 1
    rules: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.model < 1:
            raise ValueError(f"model: expected at least 1, got {self.model}")
        if self.data < 1 and self.data != -1:
            raise ValueError(f"data: expected -1 (all devices) or at least 1, got {self.data}")
        _check_patterns("rules", [pattern for pattern, _ in self.rules])


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        name: shown in logs and messages; unique within the run.
        steps: optimizer updates, at least 1.
        learning_rate: peak of the stage's schedule (poly decay after a linear warm-up).
        model: overrides of `config.model` for this stage; the keys must exist there.
        frozen: regexes of parameter paths ("params" collection, "a/b/c") that are not trained. Their
            gradients are not computed and they have no optimizer state.
        multipliers: (regex, factor) pairs; the first that matches scales the learning rate of the leaf.
            Together with `frozen` they must cover every parameter.
    """

    name: str
    steps: int
    learning_rate: float
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    multipliers: tuple[tuple[str, float], ...] = ((".*", 1.0),)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate}")
        for pattern, factor in self.multipliers:
            if not factor > 0:
                raise ValueError(
                    f"multipliers: expected a positive factor for '{pattern}', got {factor}; use frozen for 0"
                )
        _check_patterns("frozen", self.frozen)
        _check_patterns("multipliers", [pattern for pattern, _ in self.multipliers])


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The `training` section.

    Attributes:
        batch_size: images a step over all processes; a multiple of the mesh's data axis.
        stages: at least one; run in order, each with a fresh optimizer.
        optimizer: "sgd" (momentum, L2 decay added to the gradient, as in the papers) or "adamw".
        momentum: of sgd; not read by adamw.
        weight_decay: factor of the decay.
        weight_decay_on: regexes of the parameters that decay; all others do not.
        poly_power: the learning rate falls as (1 - step / steps) ** poly_power; 0 keeps it constant.
        warmup_steps: linear warm-up at the start of every stage.
        grad_clip: global norm that gradients are clipped to; 0 does not clip.
        log_every: steps between log lines; each line is the mean since the last one.
        checkpoint_every: steps between checkpoints; stage ends and SIGTERM save as well. 0: only those.
        eval_every: steps between evaluations, with one more at the end of the run; 0: none (eval.py does it).
        keep: checkpoints kept on disk, beside those that stages ended with.
        init_from: "" (random), a weights file, or the workdir of another run.
        mesh: devices.
        workers: processes that prepare batches; 0 does it in a thread of this one.
    """

    batch_size: int
    stages: tuple[StageConfig, ...]
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    weight_decay_on: tuple[str, ...] = (".*kernel",)
    poly_power: float = 0.9
    warmup_steps: int = 0
    grad_clip: float = 0.0
    log_every: int = 20
    checkpoint_every: int = 500
    eval_every: int = 0
    keep: int = 2
    init_from: str = ""
    mesh: MeshConfig = MeshConfig()
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("log_every", 1),
            ("keep", 1),
            ("checkpoint_every", 0),
            ("eval_every", 0),
            ("warmup_steps", 0),
            ("workers", 0),
            ("weight_decay", 0),
            ("grad_clip", 0),
            ("poly_power", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum}")
        if not self.stages:
            raise ValueError("stages: expected at least one stage, got none")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: expected names that differ, got {', '.join(names)}")
        _check_patterns("weight_decay_on", self.weight_decay_on)

    @property
    def total_steps(self) -> int:
        """Updates of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_start(self, index: int) -> int:
        """Global step at which stage `index` begins."""
        return sum(stage.steps for stage in self.stages[:index])


def training_config(config: ml_collections.ConfigDict) -> TrainingConfig:
    """The `training` section of `config`, checked.

    Raises:
        UserError: section or key missing, unknown, mistyped or out of range, with the path
            `config.training...`.
    """
    if "training" not in config:
        raise UserError(f"config.training: missing; {suggest('training', config)}")
    return from_config(TrainingConfig, config.training, "config.training")


def stage_system(
    config: ml_collections.ConfigDict,
    stage: StageConfig,
    build: Callable[[ml_collections.ConfigDict], System],
) -> System:
    """What `build` makes of the model section of a stage.

    Raises:
        UserError: something in that section is wrong; names the stage, whose overrides may be the cause.
    """
    section = stage_model(config, stage)
    try:
        return build(section)
    except UserError as error:
        raise UserError(f"stage '{stage.name}': {error}") from error


def stage_model(config: ml_collections.ConfigDict, stage: StageConfig | int) -> ml_collections.ConfigDict:
    """`config.model` with the overrides of a stage (given by index or as its settings).

    Raises:
        UserError: an override names a key that `config.model` does not have.
    """
    if isinstance(stage, int):
        stage = training_config(config).stages[stage]
    model = ml_collections.ConfigDict(
        config.model.to_dict()
    )  # a copy: the config itself stays as the user gave it
    _override(model, stage.model, f"config.training.stages[{stage.name}].model")
    return model


def _override(section: ml_collections.ConfigDict, overrides: Mapping[str, Any], path: str) -> None:
    for key, value in overrides.items():
        if key not in section:
            raise UserError(f"{path}.{key}: not a key of config.model; {suggest(key, section)}")
        # What an empty section may hold (the options of a gate) its reader knows.
        inside = isinstance(section[key], ml_collections.ConfigDict) and len(section[key]) > 0
        if inside and isinstance(value, Mapping | ml_collections.ConfigDict):
            _override(section[key], dict(value.items()), f"{path}.{key}")
        else:
            with section.ignore_type():  # from_config checks the types where the system reads its section
                section[key] = value
