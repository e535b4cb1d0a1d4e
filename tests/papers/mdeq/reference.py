"""MDEQ's cell in NumPy and SciPy, from tensors with the official checkpoints' names and layouts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.numpy_layers import conv, relu

Tensors = Mapping[str, np.ndarray]


def group_norm(x: np.ndarray, groups: int, tensors: Tensors, name: str) -> np.ndarray:
    split = x.reshape(groups, -1)
    split = (split - split.mean(1, keepdims=True)) / np.sqrt(split.var(1, keepdims=True) + 1e-5)
    return (
        split.reshape(x.shape) * tensors[f"{name}.weight"][:, None, None]
        + tensors[f"{name}.bias"][:, None, None]
    )


def normed(tensors: Tensors, name: str) -> np.ndarray:
    direction = tensors[f"{name}.weight_v"]
    lengths = np.sqrt((direction**2).sum((1, 2, 3), keepdims=True))
    return tensors[f"{name}.weight_g"] * direction / lengths


def cell(tensors: Tensors, z: list[np.ndarray], x: np.ndarray, groups: int) -> list[np.ndarray]:
    """f(z; x) of one image; sizes must halve exactly."""
    blocks = []
    for i, branch in enumerate(z):
        name = f"fullstage.branches.{i}.blocks.0"
        y = relu(group_norm(conv(branch, normed(tensors, f"{name}.conv1")), groups, tensors, f"{name}.gn1"))
        y = conv(y, normed(tensors, f"{name}.conv2")) + (x if i == 0 else 0)
        y = group_norm(y, groups, tensors, f"{name}.gn2") + branch
        blocks.append(group_norm(relu(y), groups, tensors, f"{name}.gn3"))
    results = []
    for i in range(len(z)):
        total = blocks[i].copy()
        for j, other in enumerate(blocks):
            name = f"fullstage.fuse_layers.{i}.{j}.net"
            if j > i:
                y = group_norm(conv(other, tensors[f"{name}.conv.weight"]), groups, tensors, f"{name}.gnorm")
                total += y.repeat(2 ** (j - i), 1).repeat(2 ** (j - i), 2)
            elif j < i:
                for k in range(i - j):
                    other = conv(other, tensors[f"{name}.{k}.conv.weight"], stride=2)
                    other = group_norm(other, groups, tensors, f"{name}.{k}.gnorm")
                    other = relu(other) if k < i - j - 1 else other
                total += other
        name = f"fullstage.post_fuse_layers.{i}"
        y = conv(relu(total), normed(tensors, f"{name}.conv"))
        results.append(group_norm(y, groups // 2, tensors, f"{name}.gnorm"))
    return results


def random_tensors(channels: tuple[int, ...], expansion: int, classes: int, seed: int = 0) -> dict:
    """A checkpoint's tensors by their names without prefix, random."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, *shape: int) -> None:
        tensors[name] = rng.normal(0, 0.3, shape).astype(np.float32)

    def norm(name: str, width: int, *, batch: bool = False) -> None:
        put(f"{name}.weight", width)
        put(f"{name}.bias", width)
        if batch:
            put(f"{name}.running_mean", width)
            tensors[f"{name}.running_var"] = rng.uniform(0.5, 2, width).astype(np.float32)
            tensors[f"{name}.num_batches_tracked"] = np.array(7)

    def weight_normed(name: str, *shape: int) -> None:
        put(f"{name}.weight_v", *shape)
        put(f"{name}.weight_g", shape[0], 1, 1, 1)

    width = channels[0]
    for place, shape in ((0, (width, 3, 3, 3)), (3, (width, width, 3, 3))):
        put(f"downsample.{place}.weight", *shape)
        norm(f"downsample.{place + 1}", width, batch=True)
    put("stage0.0.weight", width, width, 1, 1)
    norm("stage0.1", width, batch=True)
    for i, width in enumerate(channels):
        name, wide = f"fullstage.branches.{i}.blocks.0", expansion * width
        weight_normed(f"{name}.conv1", wide, width, 3, 3)
        weight_normed(f"{name}.conv2", width, wide, 3, 3)
        for k, features in ((1, wide), (2, width), (3, width)):
            norm(f"{name}.gn{k}", features)
        for j, other in enumerate(channels):
            name = f"fullstage.fuse_layers.{i}.{j}.net"
            if j > i:
                put(f"{name}.conv.weight", width, other, 1, 1)
                norm(f"{name}.gnorm", width)
            for k in range(max(i - j, 0)):
                features = width if k == i - j - 1 else other
                put(f"{name}.{k}.conv.weight", features, other, 3, 3)
                norm(f"{name}.{k}.gnorm", features)
        weight_normed(f"fullstage.post_fuse_layers.{i}.conv", width, width, 1, 1)
        norm(f"fullstage.post_fuse_layers.{i}.gnorm", width)
    total = sum(channels)
    for place, features in ((0, total), (3, classes)):
        put(f"last_layer.{place}.weight", features, total, 1, 1)
        put(f"last_layer.{place}.bias", features)
    norm("last_layer.1", total, batch=True)
    return tensors
