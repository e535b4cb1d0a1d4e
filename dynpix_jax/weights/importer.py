"""Published weights of other libraries, and of the papers' authors, as variables of our networks.

There are two kinds of import. One is of an architecture by name (`import_weights`), such as a backbone that
ImageNet trained. The other is of a whole network that a config describes (`import_network`): its tasks,
classes and modules tell which names a file of its authors has.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dynpix_jax.backbones.base import OnBackbone
from dynpix_jax.backbones.pretrained import Architecture, Names, Target, Tensors, vector
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.typing import Variables
from dynpix_jax.weights.convention import check_settings, mean_note, read_settings, reads_rgb, settings_of
from dynpix_jax.weights.matconvnet_names import in_torch_terms
from dynpix_jax.weights.network_file import NetworkFile
from dynpix_jax.weights.readers import read_network
from dynpix_jax.weights.weights_file import check_architecture, is_native

_FAMILIES = {
    "dynpix_jax.backbones.resnet_names": "resnet18 resnet26 resnet34 resnet50 resnet101 "
    "resnet50_deep resnet101_deep se_resnet26 se_resnet50 se_resnet101",
    "dynpix_jax.backbones.mobilenet_names": "mobilenetv2 se_mobilenetv2",
    "dynpix_jax.backbones.vgg_names": "vgg16 vgg16_bn",
    "dynpix_jax.papers.mdeq.weight_names": "mdeq_small mdeq_xl",
    "dynpix_jax.papers.anytime.weight_names": "hrnet_w18s1 hrnet_w18s2 hrnet_w18 hrnet_w32 "
    "hrnet_w48 hrnet_w32_pose hrnet_w48_pose anytime_w18s2 anytime_w18s2_ee anytime_w18s2_rh "
    "anytime_w18s2_ca anytime_w48 anytime_w48_ee anytime_w48_rh anytime_w48_ca",
}
ARCHITECTURES: Registry[Callable[[str], Architecture]] = Registry(
    "architecture",
    {name: f"{module}:architecture" for module, names in _FAMILIES.items() for name in names.split()},
)
"""Name -> function of the name that gives what an import needs to know."""

NETWORKS: Registry[Callable[[Any], Names]] = Registry(
    "system with published names",
    {
        system: f"dynpix_jax.papers.{system}.weight_names:published"
        for system in ("pag", "perspective", "pixelnet", "anytime", "mdeq", "astmt")
    },
)
"""System -> function of the typed ``model`` section that gives the names of its authors' files."""

_CLASSES = 1000
# A counter that only serves a cumulative average in training.
_COUNTER = re.compile(r"(.*\.)?num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What became of each tensor, and what the file told of itself.

    Attributes:
        architecture: Name of the architecture, or of the config's system.
        loaded: Our flat names that were filled.
        missing: Our names for which the file has nothing.
        unexpected: Names in the file for which the network has no place.
        skipped: "name in the file -> our name" of what was left out on request.
        left_out: Names in the file that are left out always: counters, copies, other heads.
        settings: Settings of the backbone that the weights were trained for (see `weights.convention`).
        untold: Settings that the backbone has and nothing tells.
        notes: What else a user should know.
    """

    architecture: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    skipped: tuple[str, ...]
    left_out: tuple[str, ...]
    settings: Mapping[str, bool | str]
    untold: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def architecture(name: str) -> Architecture:
    """The architecture of that name, as an import needs it; a UserError if there is none."""
    return ARCHITECTURES.resolve(name, "--arch")(name)


@functools.cache
def expected_shapes(arch: str, classes: int = _CLASSES) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all variables of the architecture with a classifier, by flat name ("params/fc/bias")."""
    init = architecture(arch).model(classes).init
    return flat_shapes(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))


def flat_shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    """Shapes of nested variables by flat name."""
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def import_weights(
    arch: str, source: str | os.PathLike[str], *, convention: str | None = None, skip: Sequence[str] = ()
) -> tuple[dict[str, Any], ImportReport]:
    """Reads a file of published weights into nested float32 variables.

    Args:
        arch: One of ``ARCHITECTURES``, or "package.module:function". Of an anytime network without a form
            ("anytime_w48"), the file tells which it is.
        source: A file of any kind that `read_network` reads, under the architecture's published names, or
            ours.
        convention: ``caffe`` or ``torch``; None: what the file tells.
        skip: Regexes of our places ("exit4/classify") whose tensors are left out.

    Returns:
        The variables, without those that the file lacks, and what became of each tensor.

    Raises:
        UserError: An unreadable file, another architecture's weights, a shape that does not fit, a value that
            is not finite, a ``skip`` that nothing fits, or no tensor that fits.
    """
    source = Path(source)
    names = architecture(arch)  # an unknown name is reported before the file is read
    file = read_network(source)
    native = is_native(file.tensors)
    tensors = _prepared(source, names, file)
    if variant := "" if native else names.variant(tensors):
        arch, names = variant, architecture(variant)
    if native:
        check_architecture(source, arch)
    expected = expected_shapes(arch, _classes(names, tensors))
    job = _Job(arch, names, expected, source, file, tensors, native)
    return job.run(convention, skip)


def import_network(
    model: Any,
    expected: Mapping[str, tuple[int, ...]],
    source: str | os.PathLike[str],
    *,
    convention: str | None = None,
    skip: Sequence[str] = (),
) -> tuple[dict[str, Any], ImportReport]:
    """Reads a file of a paper's authors into the variables of the network that a config describes.

    Raises:
        UserError: As of `import_weights`; the convention of the file is not that of ``model.backbone``.
    """
    source = Path(source)
    names = NETWORKS.resolve(model.system, "config.model.system")(model)
    file = read_network(source)
    tensors = _prepared(source, names, file)
    job = _Job(model.system, names, expected, source, file, tensors, is_native(file.tensors))
    variables, report = job.run(convention, skip)
    check_settings(source, report.settings, model.backbone if isinstance(model, OnBackbone) else None)
    return variables, report


def _prepared(source: Path, names: Names, file: NetworkFile) -> Tensors:
    if is_native(file.tensors):
        return file.tensors
    try:
        tensors = in_torch_terms(file) if file.format == "matconvnet" else file.tensors
        return names.prepare(tensors, file.layers)
    except (UserError, ValueError) as error:
        raise UserError(f"{source}: {error}") from None


@dataclasses.dataclass
class _Sorted:
    """What becomes of a file's tensors: name -> target, our name -> name, and names."""

    loaded: dict[str, Target] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One import: the file, its tensors in the form that the names translate, and what is expected."""

    label: str
    names: Names
    expected: Mapping[str, tuple[int, ...]]
    source: Path
    file: NetworkFile
    tensors: Tensors
    native: bool

    def run(self, convention: str | None, skip: Sequence[str]) -> tuple[dict[str, Any], ImportReport]:
        settings = settings_of(self.file, self.names, convention)
        if self.native and convention is None:
            settings = read_settings(self.source)
        found = self._sorted([_pattern(text) for text in skip])
        self._check(found, skip)
        loaded = {
            target.name: self._converted(name, self.tensors[name], target, settings)
            for name, target in found.loaded.items()
        }
        report = ImportReport(
            self.label,
            tuple(sorted(loaded)),
            tuple(sorted(self.expected.keys() - loaded.keys() - found.skipped.keys())),
            tuple(sorted(found.unexpected)),
            tuple(f"{theirs} -> {ours}" for ours, theirs in sorted(found.skipped.items())),
            tuple(sorted(found.left_out)),
            settings,
            tuple(name for name in self.names.settings if name not in settings),
            self._notes(settings),
        )
        return traverse_util.unflatten_dict(loaded, sep="/"), report

    def _sorted(self, skip: Sequence[re.Pattern[str]]) -> _Sorted:
        found = _Sorted()
        for name in self.tensors:
            if _COUNTER.fullmatch(name) or self.names.is_dropped(name):
                found.left_out.append(name)
                continue
            target = Target(name, -1, vector) if self.native else self.names.translate(name)
            if target is None or target.name not in self.expected:
                found.unexpected.append(name)
            elif any(pattern.match(_place(target.name)) for pattern in skip):
                found.skipped[target.name] = name
            else:
                found.loaded[name] = target
        return found

    def _check(self, found: _Sorted, skip: Sequence[str]) -> None:
        taken: dict[str, str] = {}
        for name, target in found.loaded.items():
            other = taken.setdefault(target.name, name)
            if other != name:
                raise UserError(
                    f"{self.source}: {other} and {name} both belong to {target.name} of {self.label}; "
                    "expected one of them: save the file without the other"
                )
        if not found.loaded and not found.skipped:
            raise UserError(
                f"{self.source}: none of its {len(self.tensors)} tensors belongs to {self.label}; "
                f"the first is {next(iter(self.tensors))!r}, expected {self.names.example}"
            )
        for text in skip:
            if not any(_pattern(text).match(_place(name)) for name in found.skipped):
                places = sorted({_place(target.name).split("/")[0] for target in found.loaded.values()})
                raise UserError(
                    f"--skip {text}: no tensor of {self.source} goes there; places begin with "
                    f"{', '.join(places)}"
                )

    def _converted(
        self, name: str, array: np.ndarray, target: Target, settings: Mapping[str, bool | str]
    ) -> np.ndarray:
        """The tensor in our layout, float32."""
        shape = self.expected[target.name]
        fits = target.ndim in (-1, array.ndim)
        converted = target.convert(array) if fits else array
        if not fits or converted.shape != shape:
            layout = f" ({converted.shape} in our layout)" if converted.shape != array.shape else ""
            raise UserError(
                f"{self.source}: {name} has shape {array.shape}{layout}, but {self.label} expects {shape} "
                f"for {target.name}; --skip {_place(target.name).rpartition('/')[0]} would leave it out"
            )
        if target.name == self.names.stem and self._is_reversed(settings):
            converted = converted[:, :, ::-1]
        converted = np.asarray(converted, dtype=np.float32)  # a single number keeps its shape ()
        if not np.isfinite(converted).all():
            raise UserError(f"{self.source}: {name} has values that are not finite")
        return converted

    def _is_reversed(self, settings: Mapping[str, bool | str]) -> bool:
        """Whether the file's stem reads the colours in the other order than these settings give them."""
        if self.native or self.file.format not in ("caffe", "matconvnet"):
            return False
        return reads_rgb(self.file) == (settings.get("preprocessing") == "caffe")

    def _notes(self, settings: Mapping[str, bool | str]) -> tuple[str, ...]:
        reversed_ = "the stem's input channels were reversed: the file reads the other order of colours"
        note = mean_note(self.file.convention) if settings.get("preprocessing") == "caffe" else ""
        return tuple(text for text in (reversed_ if self._is_reversed(settings) else "", note) if text)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:{text})(?:/|$)")
    except re.error as error:
        raise UserError(f"--skip {text}: not a regular expression: {error}") from None


def _place(name: str) -> str:
    """A flat name without its collection: "exit4/classify/conv/kernel"."""
    return name.partition("/")[2]


def _classes(network: Architecture, tensors: Tensors) -> int:
    """Number of classes of the file's classifier; nothing else of the network depends on it."""
    theirs, ours = network.classifier
    if ours in tensors:
        return tensors[ours].shape[-1] if tensors[ours].ndim >= 2 else _CLASSES
    return tensors[theirs].shape[0] if theirs in tensors and tensors[theirs].ndim >= 2 else _CLASSES
