"""Parameters and MACs of every variant, against sums over layers written down from the paper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.backbones import mobilenet
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.flops import dense_report, variable_shapes

Count = np.ndarray
"""[parameters, MACs] of an image of 64 x 64 pixels."""

TASKS = {"boundaries": 1, "normals": 3}
LOW, HIGH = 16, 4
"""Sides of the maps at stride 4 and 16."""


def conv(side: int, inside: int, out: int, kernel: int = 1, groups: int = 1) -> Count:
    weights = kernel**2 * inside * out // groups
    return np.array([weights, weights * side**2])


def norm(channels: int) -> Count:
    return np.array([2 * channels, 0])


def excite(channels: int, reduction: int) -> Count:
    hidden = channels // reduction
    return np.array([2 * channels * hidden + hidden + channels, 2 * channels * hidden])


def resize(old: int, new: int, channels: int) -> Count:
    return np.array([0, channels * (new * old * old + new * new * old)])


def encoder(blocks: tuple[int, ...] = (2, 2, 2, 2)) -> dict[str, Count]:
    """SE-ResNet-26, or with other bottlenecks a stage, by what may be a task's own."""
    parts = {"shared": conv(32, 3, 64, 7) + norm(64), "norm": 0, "se": 0, "adapters": 0}
    side, inside = 16, 64
    for (width, stride), count in zip(((64, 1), (128, 2), (256, 2), (512, 1)), blocks, strict=True):
        for index in range(count):
            before, side = side, side // (stride if index == 0 else 1)
            parts["shared"] += conv(before, inside, width) + conv(side, width, width, 3)
            parts["shared"] += conv(side, width, 4 * width)
            parts["norm"] += 2 * norm(width) + norm(4 * width)
            parts["se"] += excite(4 * width, 16)
            parts["adapters"] += conv(side, width, width)
            if index == 0:
                parts["shared"] += conv(side, inside, 4 * width)
                parts["norm"] += norm(4 * width)
            inside = 4 * width
    return parts


def decoder(reduction: int = 16) -> dict[str, Count]:
    point, pooled = conv(HIGH, 2048, 64), conv(1, 2048, 64)
    fuse, reduce = conv(HIGH, 320, 64), conv(LOW, 256, 12)
    shared = point + 3 * conv(HIGH, 2048, 64, 3) + pooled + fuse + reduce + resize(HIGH, LOW, 64)
    shared += conv(LOW, 76, 64, 3) + conv(LOW, 64, 64, 3)
    return {
        "shared": shared,
        "norm": 8 * norm(64) + norm(12),
        "se": 8 * excite(64, reduction) + excite(12, 4),
        "adapters": 4 * point + fuse + reduce + conv(LOW, 76, 64) + conv(LOW, 64, 64),
    }


def heads(tasks: Iterable[str] = TASKS) -> Count:
    bias, channels = np.array([1, 0]), [TASKS[task] for task in tasks]
    return sum((conv(LOW, 64, c) + c * bias + resize(LOW, 64, c) for c in channels), np.zeros(2, int))


def uber() -> Count:
    total = np.zeros(2, int)
    for c in TASKS.values():
        total += conv(LOW, 256, c) + conv(HIGH, 2048, c) + 2 * norm(c) + resize(HIGH, LOW, c)
        total += conv(LOW, 2 * c, c) + np.array([c, 0]) + resize(LOW, 64, c)
    return total


def network(
    parts: dict[str, Count], own: dict[str, bool], *, always_se: bool, after: dict[str, bool] | None = None
) -> Count:
    """A part of the network: parameters of what is own count a task each, MACs of all if anything is, here
    or in the part that it comes after.
    """
    tasks = len(TASKS)
    total = np.zeros(2, int)
    runs = np.array([1, tasks if any(own.values()) or any((after or {}).values()) else 1])
    for name, count in parts.items():
        if name == "adapters" and not own.get("adapters"):
            continue
        if name == "se" and not (own.get("se") or always_se):
            continue
        copies = np.array([tasks if own.get(name) else 1, 1])
        total += count * copies * runs
    return total


def _with_tasks(section: dict[str, Any], tasks: Iterable[str] = TASKS) -> dict[str, Any]:
    return dict(system="astmt", tasks=tuple(tasks), **section)


def counted(section: dict[str, Any], tasks: Iterable[str] = TASKS) -> Count:
    system = papers.build(_with_tasks(section, tasks))
    parameters = sum(leaf.size for _, leaf in named_leaves(variable_shapes(system)["params"]))
    return np.array([parameters, dense_report(system, (64, 64)).total])


OWN = dict(se=True, norm=True)
VARIANTS = {
    "multi": ({}, {}),
    "se_enc": (OWN, {}),
    "se_dec": ({}, OWN),
    "se_dec_4": ({}, dict(OWN, reduction=4)),
    "se": (OWN, OWN),
    "adapters": (dict(norm=True, adapters=True), dict(norm=True, adapters=True)),
}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=() if name in ("multi", "se") else pytest.mark.slow) for name in VARIANTS],
)
def test_resnet_variants(variant):
    for_encoder, for_decoder = VARIANTS[variant]
    section = dict(
        backbone=dict(se=True, depth=26, output_stride=16, stride_in_1x1=False),
        encoder=for_encoder,
        decoder=for_decoder,
        # The discriminator is of training alone: no MACs of an image.
        adversarial=dict(weight=0.1) if variant == "se" else None,
    )
    expected = network(encoder(), for_encoder, always_se=True) + heads()
    parts = decoder(for_decoder.get("reduction", 16))
    expected = expected + network(parts, for_decoder, always_se=False, after=for_encoder)
    if variant == "se":
        expected[0] += 64 * 64 + 64 * 2 + 2
    np.testing.assert_array_equal(counted(section), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))])
def test_deeper_encoders(depth, blocks):
    expected = network(encoder(blocks), {}, always_se=True) + network(decoder(), {}, always_se=False)
    section = dict(backbone=dict(se=True, depth=depth, output_stride=16, stride_in_1x1=False))
    np.testing.assert_array_equal(counted(section), expected + heads())


def test_single_task():
    expected = network(encoder(), {}, always_se=True) + network(decoder(), {}, always_se=False)
    section = dict(backbone=dict(se=True, depth=26, output_stride=16, stride_in_1x1=False))
    np.testing.assert_array_equal(counted(section, ["normals"]), expected + heads(["normals"]))


def test_uber():
    section = dict(
        backbone=dict(se=True, depth=26, output_stride=16, stride_in_1x1=False), decoder=dict(kind="uber")
    )
    np.testing.assert_array_equal(counted(section), network(encoder(), {}, always_se=True) + uber())


def test_the_pooled_branch_of_mobilenet_has_no_se():
    """As released; in the ResNets it has."""
    decoder = dict(se=True, norm=True, features=16, rates=(1,))
    small = dict(backbone=dict(name="mobilenetv2", width=0.25), decoder=dict(decoder, separable=True))
    paths = [path for path, _ in named_leaves(variable_shapes(papers.build(_with_tasks(small)))["params"])]
    modules = {path.split("/se/")[0] for path in paths if path.startswith("decoder/") and "/se/" in path}
    units = {"aspp/point", "aspp/atrous_0", "aspp/fuse", "reduce", "join", "process"}
    assert modules == {f"decoder/{unit}" for unit in units}


def test_mobilenet(monkeypatch):
    """A network of five blocks; depthwise kernels count on a CPU too, where they are no convolution."""
    groups = ((1, 16, 1, 1, "a"), (6, 24, 2, 2, "b"), (6, 32, 1, 2, "c"), (6, 64, 1, 2, "d"))
    monkeypatch.setattr(mobilenet, "_GROUPS", groups)
    encode = conv(32, 3, 32, 3) + norm(32)
    inside, side = 32, 32
    for expansion, channels, count, stride, _ in groups:
        for index in range(count):
            hidden, before = expansion * inside, side
            side //= stride if index == 0 else 1
            if expansion > 1:
                encode += conv(before, inside, hidden) + norm(hidden)
            encode += conv(side, hidden, hidden, 3, groups=hidden) + norm(hidden)
            encode += conv(side, hidden, channels) + norm(channels) + excite(channels, 4)
            inside = channels
    assert side == HIGH
    decode = conv(HIGH, 64, 64) + conv(1, 64, 64) + conv(HIGH, 320, 64) + conv(LOW, 24, 12)
    decode += 3 * (conv(HIGH, 64, 64, 3, groups=64) + conv(HIGH, 64, 64)) + resize(HIGH, LOW, 64)
    for inside in (76, 64):
        decode += conv(LOW, inside, inside, 3, groups=inside) + conv(LOW, inside, 64)
    decode += 8 * norm(64) + norm(12)
    np.testing.assert_array_equal(
        counted(dict(backbone=dict(name="mobilenetv2"), decoder=dict(separable=True))),
        encode + decode + heads(),
    )
