"""Maps names of ASTMT's multi-task checkpoints to ours.

Source: facebookresearch/astmt, fblib/networks/deeplab_multi_task. The names are those of its ImageNet
networks, with a task before the leaf of what each task has for itself (`layer1.0.bn1.edge.weight`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence

from dynpix_jax.backbones import resnet_names
from dynpix_jax.backbones.pretrained import (
    Layer,
    Names,
    Settings,
    Target,
    Tensors,
    layer_target,
    without_wrappers,
)
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.papers.astmt.config import AstmtConfig

TASKS = {
    "edge": "boundaries",
    "semseg": "segmentation",
    "human_parts": "parts",
    "sal": "saliency",
    "normals": "normals",
    "depth": "depth",
    "albedo": "albedo",
}
"""Their names of the tasks -> ours."""

_TASK = rf"(?:\.(?P<task>{'|'.join(TASKS)}))?"
_LEAF = r"\.(?P<leaf>weight|bias|running_mean|running_var)"
_BLOCK = r"layer(?P<stage>[1-4])\.(?P<block>\d+)"
_INVERTED = r"features\.(?P<block>[1-9]|1[0-7])"
_UNIT = r"decoder\.(?P<unit>low_level_reduce|conv_concat|conv_process|layer5\.conv2d_(?:list\.[0-4]|final))"
_UNITS = {
    "low_level_reduce": "reduce",
    "conv_concat": "join",
    "conv_process": "process",
    "layer5.conv2d_list.0": "aspp/point",
    **{f"layer5.conv2d_list.{index}": f"aspp/atrous_{index - 1}" for index in (1, 2, 3)},
    "layer5.conv2d_list.4": "aspp/pool",
    "layer5.conv2d_final": "aspp/fuse",
}
_INVERTED_LAYERS = {
    "1": {"1": "depthwise", "2": "project"},  # the first block does not widen
    "": {"1": "expand", "2": "depthwise", "3": "project"},
}

Groups = Mapping[str, str]


def _block(groups: Groups) -> str:
    return f"backbone/res{int(groups['stage']) + 1}_{int(groups['block']) + 1}"


def _inverted(groups: Groups) -> str:
    layers = _INVERTED_LAYERS["1" if groups["block"] == "1" else ""]
    return f"backbone/block_{groups['block']}/{layers.get(groups['k'], '')}"


def _unit(groups: Groups) -> str:
    return f"decoder/{_UNITS[groups['unit']]}"


def _head(groups: Groups) -> str:
    return f"head_{TASKS[groups['head']]}"


_HEADS = rf"(?P<head>{'|'.join(TASKS)})"
# (their module, our place): a convolution, a norm, the two layers of squeeze-and-excitation.
_CONVS: tuple[tuple[str, Callable[[Groups], str]], ...] = (
    (r"conv1", lambda g: "backbone/stem_conv"),
    (_BLOCK + r"\.conv(?P<k>[123])", lambda g: f"{_block(g)}/conv{g['k']}"),
    (_BLOCK + rf"\.adapt{_TASK}", lambda g: f"{_block(g)}/adapter"),
    (_BLOCK + r"\.downsample\.process", lambda g: f"{_block(g)}/projection"),
    (r"features\.0\.conv\.0", lambda g: "backbone/stem_conv"),
    (_INVERTED + r"\.conv\.conv(?P<k>[123])", _inverted),
    (_UNIT + r"\.process\.[01]", lambda g: f"{_unit(g)}/conv"),
    (_UNIT + rf"\.adapt{_TASK}", lambda g: f"{_unit(g)}/adapter"),
    (rf"decoder\.conv_predict\.{_HEADS}", _head),
    (rf"decoder\.predict\.{_HEADS}", lambda g: f"{_head(g)}/logits"),
    (rf"decoder\.(?P<level>low|high)_level\.{_HEADS}\.0", lambda g: f"{_head(g)}/{g['level']}_conv"),
    (r"discriminator\.model\.0", lambda g: "discriminator/conv1"),
    (r"discriminator\.model\.2", lambda g: "discriminator/conv2"),
)
_NORMS: tuple[tuple[str, Callable[[Groups], str]], ...] = (
    (r"bn1", lambda g: "backbone/stem_bn"),
    (_BLOCK + rf"\.bn(?P<k>[123]){_TASK}", lambda g: f"{_block(g)}/bn{g['k']}"),
    (_BLOCK + rf"\.downsample\.norm{_TASK}", lambda g: f"{_block(g)}/projection_bn"),
    (r"features\.0\.conv\.1", lambda g: "backbone/stem_bn"),
    (_INVERTED + rf"\.conv\.bn(?P<k>[123]){_TASK}", lambda g: f"{_inverted(g)}_bn"),
    (_UNIT + rf"\.norm{_TASK}", lambda g: f"{_unit(g)}/bn"),
    (rf"decoder\.(?P<level>low|high)_level\.{_HEADS}\.1", lambda g: f"{_head(g)}/{g['level']}_bn"),
)
_EXCITATIONS: tuple[tuple[str, Callable[[Groups], str]], ...] = (
    (_BLOCK, _block),
    (_INVERTED, lambda g: f"backbone/block_{g['block']}"),
    (_UNIT, _unit),
)
# What tells that a part of a checkpoint is each task's own -> the setting of ours.
_OWN = {
    "encoder.norm": rf"(layer\d|features)\..*(bn[123]|downsample\.norm)\.({'|'.join(TASKS)})\..*",
    "encoder.se": rf"(layer\d|features)\..*se\.fc\.({'|'.join(TASKS)})\..*",
    "encoder.adapters": r"layer\d\..*\.adapt\..*",
    "decoder.norm": rf"decoder\..*\.norm\.({'|'.join(TASKS)})\..*",
    "decoder.se": r"decoder\..*\.se\..*",
    "decoder.adapters": r"decoder\..*\.adapt\..*",
}


def published(config: AstmtConfig) -> Names:
    """The names of the multi-task checkpoints of a network with these tasks."""
    # As released: strides moved to the first 1x1, and raw colours.
    backbone = config.backbone
    mobile = not isinstance(backbone, ResNetConfig)
    settings: Settings = (
        {"preprocessing": "none"} if mobile else {"stride_in_1x1": True, "preprocessing": "none"}
    )

    def prepare(tensors: Tensors, layers: Sequence[Layer]) -> Tensors:
        tensors = without_wrappers(tensors)
        if isinstance(backbone, ResNetConfig):
            resnet_names.check_layout(f"se_resnet{backbone.depth}", tensors)
        check_form(config, tensors)
        return tensors

    return Names(
        functools.partial(translate, single=len(config.tasks) == 1),
        "ASTMT's names (conv1.weight, layer1.0.bn1.semseg.weight, decoder.conv_predict.edge.weight, ...)",
        prepare=prepare,
        settings=settings,
        stem="params/backbone/stem_conv/kernel",
    )


def check_form(config: AstmtConfig, tensors: Tensors) -> None:
    """Compares the tasks and what each of them has for itself with those of the tensors.

    Raises:
        UserError: They differ; names the settings to change.
    """
    heads = re.compile(rf"decoder\.(?:conv_predict|predict)\.({'|'.join(TASKS)})\..*")
    theirs = {TASKS[match[1]] for name in tensors if (match := heads.fullmatch(name))}
    if not theirs:
        return
    if theirs != set(config.tasks):
        raise UserError(
            f"the tensors are of a network for {', '.join(sorted(theirs))}; this one is for "
            f"{', '.join(sorted(config.tasks))}; change model.tasks (or the config's variant)"
        )
    changes = []
    for setting, pattern in _OWN.items():
        if len(config.tasks) == 1 and setting != "decoder.se":
            continue  # a single task has no modules of its own
        section, field = setting.split(".")
        has = any(re.fullmatch(pattern, name) for name in tensors)
        if getattr(getattr(config, section), field) != has:
            changes.append(f"model.{setting}={has}")
    if changes:
        raise UserError(
            "the tensors are of a network whose tasks have other modules of their own: --set "
            + " ".join(changes)
        )


def translate(name: str, *, single: bool = False) -> Target | None:
    """Target of a tensor of a multi-task checkpoint; None for an unknown name.

    Args:
        name: Its name in the file.
        single: Whether the network has one task, whose parameters have the plain names in ours.
    """
    match = re.fullmatch(rf"(?P<at>.+)\.se\.fc{_TASK}\.(?P<fc>[02]){_LEAF}", name)
    if match:
        for pattern, place in _EXCITATIONS:
            if at := re.fullmatch(pattern, match["at"]):
                where = f"{place(at.groupdict())}/se{_own(match, single=single)}"
                return resnet_names.excitation(where, match["fc"], match["leaf"])
        return None
    module, _, leaf = name.rpartition(".")
    for patterns in (_CONVS, _NORMS):
        for pattern, place in patterns:
            if match := re.fullmatch(pattern, module):
                where = place(match.groupdict()) + _own(match, single=single)
                return layer_target(where, leaf, is_norm=patterns is _NORMS)
    return None


def _own(match: re.Match[str], *, single: bool) -> str:
    task = match.groupdict().get("task")
    return "" if task is None or single else f"/{TASKS[task]}"
