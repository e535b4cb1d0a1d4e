"""Sections `training`, `evaluation` and `execution` of a config as frozen dataclasses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable


@runtime_checkable
class ModelConfig(Protocol):
    """What the typed ``model`` section of every system has."""

    @property
    def system(self) -> str:
        """Name of the system in `papers.SYSTEMS`, or ``package.module:Name``."""


@runtime_checkable
class HasTarget(Protocol):
    """A typed ``model`` section whose gates are trained towards a density."""

    @property
    def target_density(self) -> float:
        """The share of positions, 1 without gates."""


MOST_STEPS = 2**31 - 1
"""Of a run: devices count them in 32 bits."""
THRESHOLDS = 99
"""Of the boundary benchmark."""
MOST_THRESHOLDS = 9999
"""Of the boundary benchmark, in place of its own."""
MAX_DIST = 0.0075
"""Of the boundary benchmark: largest distance of a match in image diagonals, for BSDS500 and PASCAL
(NYUD: 0.011)."""
MOST_WORKERS = 1024
"""Processes that a machine can be asked for."""
Implementation = Literal["masked", "gather", "pallas_tpu", "pallas_gpu"]


@dataclass(frozen=True)
class MeshConfig:
    """Devices as a (`data`, `model`) grid.

    Attributes:
        data: Devices that share the batch, and with ``sharding`` fsdp the parameters; -1 takes all that
            `model` leaves.
        model: Devices that share the batch, too, and with ``sharding`` by rules the parameters.
        rules: (regex of a parameter's path, dimension to split over the model axis); what no rule matches is
            replicated.
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

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        return {"rules": "they split over the model axis; set training.mesh.model"} if self.model == 1 else {}


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        name: Shown in logs and messages; unique within the run.
        steps: Optimizer updates, at least 1.
        learning_rate: Peak of the stage's schedule (see TrainingConfig.schedule).
        model: Typed settings of the stage's network. In a file: changes of `config.model` for this stage.
        frozen: Regexes of parameter paths ("params" collection, "a/b/c") that are not trained. Their
            gradients are not computed and they have no optimizer state.
        multipliers: (regex, factor) pairs; the first that matches scales the learning rate of the leaf.
            Together with `frozen` they must cover every parameter.
    """

    name: str
    steps: int
    learning_rate: float
    model: ModelConfig
    frozen: tuple[str, ...] = ()
    multipliers: tuple[tuple[str, float], ...] = ((".*", 1.0),)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps: expected at most {MOST_STEPS}, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate}")
        for pattern, factor in self.multipliers:
            if not factor > 0:
                raise ValueError(
                    f"multipliers: expected a positive factor for '{pattern}', got {factor}; use frozen for 0"
                )
        _check_patterns("frozen", self.frozen)
        _check_patterns("multipliers", [pattern for pattern, _ in self.multipliers])


@dataclass(frozen=True)
class TrainingConfig:
    """Section `training`.

    Attributes:
        batch_size: Images a step over all processes; a multiple of the number of devices.
        stages: At least one; run in order, each with a fresh optimizer.
        optimizer: "sgd" (momentum, L2 decay added to the gradient, as in the papers) or "adamw".
        momentum: Momentum of sgd.
        weight_decay: Factor of the decay.
        weight_decay_on: Regexes of the parameters that decay; all others do not.
        schedule: How the learning rate falls: as a ``poly`` in every stage, or as half a ``cosine`` from the
            first stage's begin to the last one's end.
        poly_power: Of ``poly``, (1 - step / steps) ** poly_power; 0 keeps the rate constant.
        warmup_steps: Linear warm-up at the start of every stage.
        grad_clip: Global norm that gradients are clipped to; 0 does not clip.
        log_every: Steps between log lines; each line is the mean since the last one.
        checkpoint_every: Steps between checkpoints; stage ends and SIGTERM save as well. 0: only those.
        eval_every: Steps between evaluations, with one more at the end of the run; 0: none (eval.py does it).
        on_save_error: What a checkpoint does that cannot be saved (no space): ``stop`` ends the run,
            ``continue`` lets it go on to the next one.
        wandb: Project of Weights & Biases that gets the log, too (extra ``wandb``); "": none.
        keep: Checkpoints kept on disk, beside those of stage ends.
        init_from: "" (random), a weights file, or the workdir of another run: its newest checkpoint, or with
            "DIR@STAGE" what a stage ended with, with "DIR@STAGE:STEP" its checkpoint after so many steps.
        mesh: Devices.
        sharding: Where parameters and optimizer state are: ``replicated`` on each device; ``fsdp``: kernels
            split over the mesh's data axis along their longest dimension that divides, and gathered where
            they are used; ``rules``: split over its model axis by `mesh.rules`.
        stall_minutes: After so long without a step each process prints where it is, and so it does within an
            evaluation or a save that takes longer; 0: never.
        workers: Processes that prepare batches; 0 does it in a thread of this one.
        microbatches: Parts that a batch is run in, one after another; the gradient is the mean of theirs.
            With frozen norms it is that of the whole batch, if all parts have as many labels and nothing is
            drawn: each part normalises its loss by its own labels. Batch norms take each part's moments, and
            their running averages move once a part.
        remat: What the backward pass computes again instead of keeping it: ``none``; the insides of the
            network's ``stages``, or of its ``blocks``; or a regex of paths of modules ("backbone/res4_.*").
    """

    batch_size: int
    stages: tuple[StageConfig, ...]
    optimizer: Literal["sgd", "adamw"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_on: tuple[str, ...] = (r".*/kernel",)
    schedule: Literal["poly", "cosine"] = "poly"
    poly_power: float = 0.9
    warmup_steps: int = 0
    grad_clip: float = 0.0
    log_every: int = 20
    checkpoint_every: int = 250
    eval_every: int = 0
    on_save_error: Literal["stop", "continue"] = "stop"
    wandb: str = ""
    keep: int = 2
    init_from: str = ""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sharding: Literal["replicated", "fsdp", "rules"] = "replicated"
    stall_minutes: int = 10
    workers: int = 0
    microbatches: int = 1
    remat: str = "none"

    def __post_init__(self) -> None:
        least = dict.fromkeys(("batch_size", "log_every", "keep", "microbatches"), 1)
        least |= dict.fromkeys(
            ("checkpoint_every", "eval_every", "warmup_steps", "workers", "stall_minutes"), 0
        )
        least |= dict.fromkeys(("weight_decay", "grad_clip", "poly_power"), 0)
        _check_least(self, least)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum}")
        if not self.stages:
            raise ValueError("stages: expected at least one stage, got none")
        if self.total_steps > MOST_STEPS:
            raise ValueError(f"stages: {self.total_steps} steps; expected at most {MOST_STEPS}")
        _check_most(self, dict(workers=MOST_WORKERS, batch_size=2**20))
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: expected names that differ, got {', '.join(names)}")
        if self.sharding == "rules" and not self.mesh.rules:
            raise ValueError("sharding: 'rules' needs some; set training.mesh.rules")
        _check_patterns("weight_decay_on", self.weight_decay_on)
        _check_patterns("remat", [self.remat])

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        reasons = {}
        if self.optimizer != "sgd":
            reasons["momentum"] = f"training.optimizer is '{self.optimizer}'; 'sgd' reads it"
        if self.schedule != "poly":
            reasons["poly_power"] = f"training.schedule is '{self.schedule}'"
        if self.sharding != "rules":
            reasons["mesh.rules"] = f"training.sharding is '{self.sharding}'; 'rules' reads them"
        if not self.weight_decay:
            reasons["weight_decay_on"] = "training.weight_decay is 0"
        return reasons

    @property
    def total_steps(self) -> int:
        """Updates of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_start(self, index: int) -> int:
        """Global step at which stage `index` begins."""
        return sum(stage.steps for stage in self.stages[:index])


@dataclass(frozen=True)
class InferenceConfig:
    """Views that an image is predicted from. The defaults: the image alone, whole.

    Attributes:
        window: (H, W) of windows that slide over the (resized) image; None takes it whole.
        stride: Steps of the window, None for two thirds of it.
        scales: Sizes relative to the image, each of them averaged.
        multiple: Sides of resized images are rounded to multiples of it.
        flip: The mirror image as well.
        blur: Standard deviation, in pixels, of a Gaussian that smooths predicted depth in the end; 0: none.
            Neither the paper nor its code gives the width of "+blur" in table 1 of Recurrent Scene Parsing.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    multiple: int = 1
    flip: bool = False
    blur: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            if (sides := getattr(self, name)) is not None and min(sides) < 1:
                raise ValueError(f"{name}: {sides}; expected a positive height and width")
        if any(step > side for step, side in zip(self.stride or (), self.window or (), strict=False)):
            raise ValueError(f"stride: {self.stride} leaves gaps between windows of {self.window}")
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > 16:
            raise ValueError(f"scales: {self.scales}; expected one or more positive numbers, at most 16")
        if self.multiple < 1:
            raise ValueError(f"multiple: {self.multiple}; expected at least 1")
        if not self.blur >= 0:
            raise ValueError(f"blur: {self.blur}; expected a number of pixels >= 0")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        reasons = {}
        if self.window is None:
            reasons["stride"] = "it is of the window; set evaluation.inference.window"
        if self.scales == (1.0,):
            reasons["multiple"] = "images keep their size; set evaluation.inference.scales"
        return reasons

    @property
    def one_view(self) -> bool:
        """Whether the image is predicted from one view of all of it, at some size."""
        return self.window is None and len(self.scales) == 1 and not self.flip

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which the first scale shows an image of ``size``."""
        return scaled_size(size, self.scales[0], self.multiple)


def scaled_size(size: tuple[int, int], scale: float, multiple: int = 1) -> tuple[int, int]:
    """(H, W) times ``scale``, rounded to multiples of ``multiple``, at least one."""
    if scale == multiple == 1:
        return size
    height, width = (multiple * max(1, int(side * scale / multiple + 0.5)) for side in size)
    return height, width


@dataclass(frozen=True)
class EvaluationConfig:
    """Section `evaluation`: what ``eval.py`` does.

    Attributes:
        mode: ``dense``, ``sparse`` or ``both``, which scores and times them side by side.
        every_stage: Evaluate the end of every training stage (one row a budget), not only the newest
            checkpoint. A stage or a file of weights that is named is evaluated alone.
        also: Other ways to run the network, a row each, by the names that its system has for them
            (``HasAlternatives.alternatives``): "argmax" of soft choices, "loop_0" for fewer loops.
        thresholds: Number of thresholds of the boundary benchmark (evaluation.boundary).
        max_dist: Tolerance of the boundary benchmark, as a share of the image's diagonal.
        nms: Whether the boundary benchmark thins predictions.
        smooth: Whether the boundary benchmark smooths predictions before it thins them.
        workers: Processes that match boundaries.
        pictures: Images shown in the report, and in TensorBoard at each evaluation of a training run.
        limit: Images that are evaluated; 0 = all.
        batch_size: Images that are run together; above 1 they must be of one size.
        inference: Views that each image is predicted from; the default is the image alone.
        reference: A file of `dynpix reference`: Δm of a network for several tasks is reported; "" for none.
        chance: Draws of masks of chance: networks with gates are scored with their own masks shuffled over
            positions, the mean of as many draws, and with those of another image (`evaluation.chance`); 0 is
            none. Each draw takes one more pass, other images one in all.
    """

    mode: Literal["dense", "sparse", "both"] = "both"
    every_stage: bool = False
    also: tuple[str, ...] = ()
    thresholds: int = THRESHOLDS
    max_dist: float = MAX_DIST
    nms: bool = True
    smooth: bool = True
    workers: int = 2
    pictures: int = 8
    limit: int = 0
    batch_size: int = 1
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    reference: str = ""
    chance: int = 0

    def __post_init__(self) -> None:
        _check_least(self, dict(batch_size=1, thresholds=1, workers=0, pictures=0, limit=0, chance=0))
        _check_most(self, dict(thresholds=MOST_THRESHOLDS, workers=MOST_WORKERS))
        if self.chance and not self.inference.one_view:
            raise ValueError(
                f"chance: {self.chance}, but inference asks for several views of an image; masks of chance "
                "are for one (no flip, no window, one scale): set evaluation.chance=0 for several"
            )
        if not 0.0 < self.max_dist < 1.0:
            raise ValueError(f"max_dist: {self.max_dist}; expected a share of the image diagonal in (0, 1)")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads, and why."""
        return {} if self.nms else {"smooth": "what is not thinned is not smoothed; set evaluation.nms"}

    @property
    def modes(self) -> tuple[Literal["dense", "sparse"], ...]:
        """The modes to run, in the order of the report."""
        return ("dense", "sparse") if self.mode == "both" else (self.mode,)


@dataclass(frozen=True)
class ExecutionConfig:
    """Section `execution`: which programs run a network; results are equal up to rounding.

    Attributes:
        implementation: Implementation of sparse blocks (`ops.sparse`); None chooses by platform, shapes and
            density.
    """

    implementation: Implementation | None = None


def _check_least(config: Any, least: Mapping[str, int]) -> None:
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise ValueError(f"{name}: expected at least {value}, got {getattr(config, name)}")


def _check_most(config: Any, most: Mapping[str, int]) -> None:
    for name, value in most.items():
        if getattr(config, name) > value:
            raise ValueError(f"{name}: expected at most {value}, got {getattr(config, name)}")


def _check_patterns(name: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: '{pattern}' is not a regular expression: {error}") from error
