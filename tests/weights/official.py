"""Names and shapes of the tensors in the authors' files, written down from their code, without ours.

Every function gives {name: shape}; `filled` makes tensors of them. Widths are parameters, so that the same
sets of names come small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{leaf}": (channels,) for leaf in leaves}, f"{name}.num_batches_tracked": ()}


def filled(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors by which a forward pass stays of the size of 1; all differ."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            result[name] = np.asarray(7, np.int64)
        elif name.endswith("Lambda"):
            result[name] = np.asarray([rng.uniform(0.3, 2.8)], np.float32)
        elif name.endswith("running_var"):
            result[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) > 1:
            result[name] = (rng.normal(size=shape) * np.prod(shape[1:]) ** -0.5).astype(np.float32)
        else:
            start = 1.0 if name.endswith(".weight") else 0.0
            result[name] = (start + 0.1 * rng.normal(size=shape)).astype(np.float32)
    return result


def hrnet(
    width: int,
    layer1: tuple[int, int],
    modules: Sequence[int],
    blocks: int,
    *,
    pose: int = 0,
    exits: str = "",
    adaptive: bool = False,
    features: int = 4,
    classes: int = 19,
) -> Shapes:
    """HRNet (lib/models/seg_hrnet.py, model_anytime.py), without the prefix `model.`.

    Args:
      width: channels of the highest branch.
      layer1: number of bottlenecks, and their width.
      modules: of stages 2, 3 and 4.
      blocks: of a branch.
      pose: joints of the pose network; 0: segmentation.
      exits: "original" (EE), "flex" (RH), or none.
      adaptive: convolutions between the first exit and the last have `Lambda` (CA).
      features: width of the redesigned exits.
      classes: of the segmentation.
    """
    found: Shapes = {}

    def conv(
        name: str, out: int, into: int, kernel: int = 3, bias: bool = False, masked: bool = False
    ) -> None:
        found[f"{name}.weight"] = (out, into, kernel, kernel)
        if bias:
            found[f"{name}.bias"] = (out,)
        if masked:
            found[f"{name}.Lambda"] = (1,)
            found[f"{name}.square_dis"] = (1, 1, 7, 7)

    def unit(name: str, out: int, into: int, kernel: int = 3) -> None:
        conv(f"{name}.0", out, into, kernel, masked=adaptive)
        found.update(norm(f"{name}.1", out))

    def plain(name: str, channels: int, masked: bool) -> None:
        conv(f"{name}.0", channels, channels, 1, True, masked)
        found.update(norm(f"{name}.1", channels))
        conv(f"{name}.3", classes, channels, 1, True, masked)

    def exit_layer(number: int, channels: int) -> None:
        masked = adaptive and number > 1
        if exits == "original":
            plain(f"exit{number}", channels, masked)
        elif exits == "flex":
            for at in range(2 * (4 - number) - 1):  # each behind a pooling or an up-sampling
                conv(f"exit{number}.{4 * at + 1}", features, channels, 1, True, masked)
                found.update(norm(f"exit{number}.{4 * at + 2}", features))
                channels = features
            conv(f"exit{number}.{4 * (2 * (4 - number) - 1) + 1}", classes, channels, 1, True, masked)

    for k, into in ((1, 3), (2, 64)):
        conv(f"conv{k}", 64, into)
        found.update(norm(f"bn{k}", 64))
    inside, below = layer1[1], 64
    for b in range(layer1[0]):
        sizes = ((inside, below, 1), (inside, inside, 3), (4 * inside, inside, 1))
        for k, (out, into, kernel) in enumerate(sizes, 1):
            conv(f"layer1.{b}.conv{k}", out, into, kernel)
            found.update(norm(f"layer1.{b}.bn{k}", out))
        if b == 0:
            conv("layer1.0.downsample.0", 4 * inside, below, 1)
            found.update(norm("layer1.0.downsample.1", 4 * inside))
        below = 4 * inside
    exit_layer(1, below)
    channels = [width * 2**branch for branch in range(4)]
    unit("transition1.0", channels[0], below)
    unit("transition1.1.0", channels[1], below)
    for stage in (2, 3, 4):
        if stage > 2:
            unit(f"transition{stage - 1}.{stage - 1}.0", channels[stage - 1], channels[stage - 2])
        for m in range(modules[stage - 2]):
            at = f"stage{stage}.{m}"
            for r in range(stage):
                for b in range(blocks):
                    for k in (1, 2):
                        conv(f"{at}.branches.{r}.{b}.conv{k}", channels[r], channels[r], masked=adaptive)
                        found.update(norm(f"{at}.branches.{r}.{b}.bn{k}", channels[r]))
            last = pose and stage == 4 and m == modules[2] - 1
            for i in range(1 if last else stage):
                for j in range(stage):
                    for k in range(i - j):
                        out = channels[i] if k == i - j - 1 else channels[j]
                        unit(f"{at}.fuse_layers.{i}.{j}.{k}", out, channels[j])
                    if j > i:
                        unit(f"{at}.fuse_layers.{i}.{j}", channels[i], channels[j], 1)
        if stage < 4:
            exit_layer(stage, sum(channels[:stage]))
    if pose:
        conv("final_layer", pose, channels[0], 1, True)
    else:
        plain("last_layer", sum(channels), adaptive)
    return found


def astmt(
    width: int,
    blocks: Sequence[int],
    tasks: Mapping[str, int],
    *,
    decoder: int,
    own: bool = True,
    discriminator: int = 0,
) -> Shapes:
    """ASTMT's SE-ResNet with its DeepLab decoder (fblib/networks/deeplab_multi_task).

    Args:
      width: channels of the stem.
      blocks: bottlenecks of layers 1 to 4.
      tasks: their names of the tasks -> channels of the prediction.
      decoder: its width.
      own: squeeze-and-excitation, norms and adapters of each task, in encoder and decoder; otherwise shared
        (encoder), or none (SE and adapters of the decoder).
      discriminator: the kernel size of its two convolutions; 0 for none.
    """
    found: Shapes = {}
    each = [f".{task}" for task in tasks] if own else [""]

    def norms(name: str, channels: int) -> None:
        for task in each:
            found.update(norm(f"{name}{task}", channels))

    def coupled(name: str, out: int, into: int, kernel: int = 1, at: int = 0, reduction: int = 16) -> None:
        found[f"{name}.process.{at}.weight"] = (out, into, kernel, kernel)
        if own:
            found.update(excitations(name, each, out, reduction))
        if own and not at:
            found.update({f"{name}.adapt.{task}.weight": (out, into, 1, 1) for task in tasks})
        norms(f"{name}.norm", out)

    found["conv1.weight"] = (width, 3, 7, 7)
    found.update(norm("bn1", width))
    below = width
    for layer, count in enumerate(blocks, 1):
        inner = width * 2 ** (layer - 1)
        for b in range(count):
            at = f"layer{layer}.{b}"
            sizes = ((inner, below, 1), (inner, inner, 3), (4 * inner, inner, 1))
            for k, (out, into, kernel) in enumerate(sizes, 1):
                found[f"{at}.conv{k}.weight"] = (out, into, kernel, kernel)
                norms(f"{at}.bn{k}", out)
            if own:
                found.update({f"{at}.adapt.{task}.weight": (inner, inner, 1, 1) for task in tasks})
            found.update(excitations(at, each, 4 * inner, 16))
            if b == 0:
                found[f"{at}.downsample.process.weight"] = (4 * inner, below, 1, 1)
                norms(f"{at}.downsample.norm", 4 * inner)
            below = 4 * inner
    low = max(48 * decoder // 256, 1)
    at = "decoder.layer5.conv2d_list"
    coupled(f"{at}.0", decoder, below)
    for index in (1, 2, 3):
        coupled(f"{at}.{index}", decoder, below, 3)
    coupled(f"{at}.4", decoder, below, at=1)  # behind the pooling
    coupled("decoder.layer5.conv2d_final", decoder, 5 * decoder)
    coupled("decoder.low_level_reduce", low, 4 * width, reduction=4)
    coupled("decoder.conv_concat", decoder, decoder + low, 3)
    coupled("decoder.conv_process", decoder, decoder, 3)
    for task, channels in tasks.items():
        found[f"decoder.conv_predict.{task}.weight"] = (channels, decoder, 1, 1)
        found[f"decoder.conv_predict.{task}.bias"] = (channels,)
    if discriminator:
        found["discriminator.model.0.weight"] = (decoder, decoder, discriminator, discriminator)
        found["discriminator.model.2.weight"] = (len(tasks), decoder, discriminator, discriminator)
        found["discriminator.model.2.bias"] = (len(tasks),)
    return found


def excitations(name: str, each: Sequence[str], channels: int, reduction: int) -> Shapes:
    """Squeeze-and-excitation of a block, for each of the tasks (".edge")."""
    inner, found = max(channels // reduction, 1), {}
    for task in each:
        at = f"{name}.se.fc{task}"
        found |= {f"{at}.0.weight": (inner, channels), f"{at}.0.bias": (inner,)}
        found |= {f"{at}.2.weight": (channels, inner), f"{at}.2.bias": (channels,)}
    return found


def astmt_mobilenet(stem: int, channels: Sequence[int], tasks: Iterable[str]) -> Shapes:
    """ASTMT's SE-MobileNetV2 without its decoder: stem, and 17 blocks in seven groups of these channels."""
    found: Shapes = {"features.0.conv.0.weight": (stem, 3, 3, 3), **norm("features.0.conv.1", stem)}
    below, number = stem, 0
    for group, (out, blocks) in enumerate(zip(channels, (1, 2, 3, 4, 3, 3, 1), strict=True)):
        for _ in range(blocks):
            number += 1
            at, wide = f"features.{number}", 6 * below if group else below
            layers = [(wide, below, 1, 1)] if group else []  # the first group does not widen
            for k, shape in enumerate([*layers, (wide, 1, 3, 3), (out, wide, 1, 1)], 1):
                found[f"{at}.conv.conv{k}.weight"] = shape
                for task in tasks:
                    found |= norm(f"{at}.conv.bn{k}.{task}", shape[0])
            found |= excitations(at, [f".{task}" for task in tasks], out, 4)
            below = out
    return found


def pixelnet(width: int, fc: int, hidden: int, classes: int, *, boundaries: bool = False) -> Shapes:
    """PixelNet's blobs (models/*/train.prototxt): VGG-16 with conv-7, and the MLP of three layers."""
    found: Shapes = {}
    below, column = 3, 0
    for block, (count, times) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)), 1):
        for index in range(1, count + 1):
            found[f"conv{block}_{index}"] = (times * width, below, 3, 3)
            below = times * width
        column += below
    names = ("fc6o", "fc7o", "fc6n", "fc7n", "cls_score")
    if not boundaries:
        names = ("fc6_conv", "fc7_conv", "fc6_new", "fc7_new", "cls_score_new")
    found[names[0]] = (fc, below, 7, 7)
    found[names[1]] = (fc, fc, 1, 1)
    found[names[2]] = (hidden, column + fc)
    found[names[3]] = (hidden, hidden)
    found[names[4]] = (classes, hidden)
    return found
