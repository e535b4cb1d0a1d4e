"""A whole config as one frozen, typed object: parsed once, by the entry points; all below take it.

Two runs are the same if all their settings, defaults included, are equal. A new option with a default changes
no older run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.merging import default_of, leaves, merge
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.sections import Given, OneOf, from_config, to_json, unread
from dynpix_jax.core.settings import (
    EvaluationConfig,
    ExecutionConfig,
    ModelConfig,
    StageConfig,
    TrainingConfig,
)
from dynpix_jax.core.source import SourceSettings
from dynpix_jax.core.system import SystemClass

HARMLESS = (
    "name",
    r"training\.(log_every|checkpoint_every|eval_every|on_save_error|keep|workers|init_from|remat|sharding|stall_minutes|wandb)",
    r"training\.mesh(\..*)?",
    r"(evaluation|execution)(\..*)?",
    r"data\.eval(\..*)?",
    r"(.*\.)?root",
)
"""Settings that may change between a run and its continuation: they do not change what is learned.

Nor does the place of the first weights, once there is a checkpoint.
"""

HARMLESS_IN_EVALUATION = (r".*\.model\.(compute_dtype(\[.*)?|norm_group)",)
"""Settings that may also differ where a trained network is evaluated: how its numbers are computed."""

ReadSource = Callable[[Mapping[str, Any], str], SourceSettings]
"""`data.sources.read_source`: the section of a source and its full name -> what it says."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """One part (`train` or `eval`) of the `data` section.

    Attributes:
        source: The data set, its split and its own options.
        augment: Ranges of the joint augmentation; None leaves the images as they are.
        pad_to: (H, W) that smaller images are padded to; needed for batches of images of different sizes.
        drop_labels: Labels that batches leave out.
    """

    source: SourceSettings
    augment: GeometryRanges | None = None
    pad_to: tuple[int, int] | None = None
    drop_labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The `data` section."""

    train: DataConfig
    eval: DataConfig

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        reason = "evaluation takes whole images and all labels; only training changes them"
        return dict.fromkeys(("eval.augment", "eval.pad_to", "eval.drop_labels"), reason)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        name: For people.
        data: What is trained and evaluated on.
        training: Optimizer, checkpoints, and the stages, each with the settings of its network.
        seed: Seed of all random streams.
        evaluation: What `eval.py` does.
        execution: Which programs run networks.
        given: The config as it was given, as JSON values; checkpoints hold it.
    """

    name: str
    data: DataSection
    training: TrainingConfig
    seed: int = 0
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    given: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, compare=False, repr=False, metadata={"given": False}
    )

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages of `training`."""
        return self.training.stages

    def stage(self, name: str | None) -> StageConfig:
        """The stage of that name, None gives the last; a UserError if there is no such stage."""
        named = {stage.name: stage for stage in self.stages}
        if name is not None and name not in named:
            raise UserError(f"--stage {name}: the config has no such stage; {suggest(name, named)}")
        return self.stages[-1] if name is None else named[name]


def parse_run(
    config: Mapping[str, Any] | ml_collections.ConfigDict,
    systems: Registry[SystemClass],
    read_source: ReadSource,
) -> RunConfig:
    """The settings of a config.

    Each stage's network has the settings of `config.model` with the stage's changes, parsed by the class that
    its system names as ``Config``.

    Raises:
        UserError: An unknown, missing or wrong key; a value that nothing reads. With the key's full path.
    """
    given = plain(config)
    tree = dict(given)
    base = _section(tree, "model")
    tree.pop("model")
    training = _section(tree, "training")
    stages = training.get("stages")
    if isinstance(stages, Sequence) and all(isinstance(stage, Mapping) for stage in stages):
        models = _stage_models(base, stages, systems)
        stages = [{**stage, "model": model} for stage, model in zip(stages, models, strict=True)]
        tree["training"] = {**training, "stages": stages}
    data = _section(tree, "data")
    for part in ("train", "eval"):
        section = data.get(part)
        if isinstance(section, Mapping) and isinstance(section.get("source"), Mapping):
            source = read_source(section["source"], f"config.data.{part}.source")
            data = {**data, part: {**section, "source": source}}
    run = from_config(RunConfig, {**tree, "data": data}, "config")
    for path, value, reason in unread(run, "config"):
        # Values of models may be read by some of the stages: `_stage_models`.
        if not re.match(r"config\.training\.stages\[\d+\]\.model\.", path):
            raise UserError(f"{path}: nothing reads {value!r}: {reason}")
    return dataclasses.replace(run, given=to_json(given))


def plain(value: Any) -> Any:
    """A config with dicts and lists in place of ConfigDicts and tuples.

    Raises:
        UserError: A required value is left open, or a section holds itself.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise UserError("config: a section holds itself, or sections are too deep") from None


def _plain(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
        try:
            value = value.to_dict()
            return _plain({key: value[key] for key in value})
        except ml_collections.config_dict.RequiredValueError as error:
            raise UserError(f"config: a required value is left open: {error}") from error
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(old: RunConfig, new: RunConfig, harmless: Sequence[str] = HARMLESS) -> list[str]:
    """Key paths, with both values, in which two runs differ; ``harmless`` ones are left out."""
    before, after = (dict(leaves(settings(run))) for run in (old, new))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        first, second = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if first != second and not any(re.fullmatch(pattern, path) for pattern in harmless):
            key = re.sub(r"(\.source|\.sources\[\d+\])\.options\.", r"\1.", path)
            lines.append(f"config.{key} is {first!r} there and {second!r} here")
    # A difference that all stages share is a value of config.model.
    bases = [re.sub(r"\.training\.stages\[\d+\]\.model\.", ".model.", line) for line in lines]
    everywhere = {base for base in bases if bases.count(base) == len(new.stages)}
    return list(dict.fromkeys(b if b in everywhere else line for b, line in zip(bases, lines, strict=True)))


def settings(run: RunConfig) -> dict[str, Any]:
    """All settings of a run as JSON values, defaults included."""
    found: dict[str, Any] = to_json(dataclasses.replace(run, given={}))
    found.pop("given")
    return found


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in tree:
        raise UserError(f"config.{name}: missing; {suggest(name, tree)}")
    if not isinstance(tree[name], Mapping):
        raise UserError(f"config.{name}: expected a section with keys, got {tree[name]!r}")
    section: Mapping[str, Any] = tree[name]
    return section


@dataclasses.dataclass(frozen=True)
class _StageModel:
    """The network of a stage, and what it makes of the values of `config.model`.

    Attributes:
        path: Full name of the stage's own section ``model``.
        model: Typed.
        own: Values that the stage gives itself, by their paths in `config.model`.
        replaced: Paths in `config.model` whose values the stage replaces.
        ignored: Paths in `config.model` that nothing in this network reads, and why.
    """

    path: str
    model: ModelConfig
    own: Mapping[str, Any]
    replaced: frozenset[str]
    ignored: Mapping[str, str]

    def why_ignored(self, path: str) -> str | None:
        """Why nothing reads the value at a path; None if something does."""
        within = (one for one in self.ignored if path == one or path.startswith((f"{one}.", f"{one}[")))
        return next((self.ignored[one] for one in within), None)

    def reads(self, path: str) -> bool:
        """Whether the network reads the value that `config.model` has at a path."""
        return path not in self.replaced and self.why_ignored(path) is None

    def gives(self, path: str) -> bool:
        """Whether the stage has a value of its own at a path."""
        return any(path == other or path.startswith(f"{other}.") for other in self.own)

    def name(self, path: str) -> str:
        """The name of a path in `config.model` as the stage's own."""
        return path.replace(_MODEL, self.path, 1)


_MODEL = "config.model"
_LARGEST = 10**6


def _stage_models(
    base: Mapping[str, Any], given: Sequence[Mapping[str, Any]], systems: Registry[SystemClass]
) -> list[ModelConfig]:
    """The typed model of each of the ``given`` stages, from ``base``, the values of `config.model`.

    Raises:
        UserError: A wrong model, or a value that no stage reads.
    """
    system = OneOf(systems, key="system")
    kind = system.settings(base, _MODEL)
    stages = []
    for index, section in enumerate(given):
        change, replaced = section.get("model") or {}, list[str]()
        try:
            merged = merge(kind, base, change, _MODEL, replaced)
            model: Any = from_config(system.settings(merged, _MODEL), merged, _MODEL)
            _check_sizes(model)
        except UserError as error:
            raise UserError(f"stage '{section.get('name', index)}': {error}") from error
        ignored = {path: reason for path, _, reason in unread(model, _MODEL)}
        own = dict(leaves(change, _MODEL))
        path = f"config.training.stages[{index}].model"
        stage = _StageModel(path, model, own, frozenset(replaced), ignored)
        for path, value in own.items():
            if reason := stage.why_ignored(path):
                raise UserError(f"{stage.name(path)}: nothing reads {value!r}: {reason}")
        stages.append(stage)
    for path, value in leaves(base, _MODEL):
        if stages and not any(stage.reads(path) for stage in stages):
            _refuse(path, value, kind, stages)
    return [stage.model for stage in stages]


def _refuse(path: str, value: Any, kind: type, stages: Sequence[_StageModel]) -> None:
    """Refuses a value of `config.model` that no stage reads, unless it is a default that all replace.

    Such a default may be written out, as everywhere. A default that is ignored is none of ``ignored``.

    Raises:
        UserError: Names the keys of the stages' own values, which have an effect.
    """
    reason = next(filter(None, (stage.why_ignored(path) for stage in stages)), None)
    is_default = not isinstance(value, Given) and value == default_of(kind, path.split(".")[2:])
    if is_default and reason is None:
        return
    keys = [stage.name(path).removeprefix("config.") for stage in stages if stage.gives(path)]
    instead = f"; what has an effect is {', '.join(keys)}" if keys else ""
    raise UserError(f"{path}: nothing reads {value!r}: {reason or 'every stage has its own'}{instead}")


def _check_sizes(model: Any) -> None:
    """Refuses a whole number beyond any network, which would overflow the sizes of arrays."""
    for path, value in leaves(to_json(model), _MODEL):
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int) and abs(number) > _LARGEST for number in numbers):
            raise UserError(f"{path}: {value}; expected at most {_LARGEST}")


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()
