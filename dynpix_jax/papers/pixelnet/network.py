"""The network of PixelNet: feature maps of VGG-16, and an MLP of hypercolumns at any pixels."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.backbones.base import BuildOptions
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.papers.pixelnet.config import PixelNetConfig
from dynpix_jax.papers.pixelnet.sampling import linear_everywhere, sample_bilinear, sample_linear

Maps = tuple[Array, ...]
"""A feature map (B, h, w, C) for each of the hypercolumn's layers."""


class PixelNetNetwork(nn.Module):
    """``maps``, then ``at_pixels`` (for training) or ``everywhere``; a call predicts all pixels."""

    config: PixelNetConfig
    channels: int = 1

    def setup(self) -> None:
        config = self.config
        column = config.hypercolumn
        self.backbone = config.backbone.build(BuildOptions(taps=column.layers))
        known = {stage.name: stage for stage in config.backbone.stages}
        self.infos = tuple(known[layer] for layer in column.layers)
        self.strides = tuple(info.stride for info in self.infos)
        widths = (sum(info.channels for info in self.infos), *config.mlp.hidden, self.channels)
        std = config.mlp.init_std
        init = nn.initializers.he_normal() if std is None else nn.initializers.normal(std)
        self.mlp = [
            Conv(below, above, kernel_size=1, use_bias=True, kernel_init=init, name=f"mlp{index}")
            for index, (below, above) in enumerate(itertools.pairwise(widths), 1)
        ]
        if column.normalize == "batch":
            self.norms = {info.name: BatchNorm(info.channels) for info in self.infos}
        self.drop_column = nn.Dropout(column.dropout)
        self.drop = nn.Dropout(config.mlp.dropout)

    def maps(self, images: Array, *, train: bool = False) -> Maps:
        """Feature maps of (B, H, W, 3) RGB images in 0..255, any dtype."""
        pad = self.config.pad
        x = self.config.backbone.preprocess(images)
        if pad:
            x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        features = self.backbone(x, train=train)
        return tuple(features[info.name] for info in self.infos)

    def at_pixels(self, maps: Maps, points: Array, *, train: bool = False) -> Array:
        """Predictions (B, N, channels) or (N, channels) at ``points``, see `sample_bilinear`."""
        column, pad = self.config.hypercolumn, self.config.pad
        points = jnp.asarray(points)
        points = points + jnp.asarray((0, pad, pad)[-points.shape[-1] :], points.dtype)
        kernels, bias = self._first(maps, train=train)
        if train and (column.dropout or column.normalize == "batch"):
            # Each sampled value is normalised, or dropped, on its own: there is no product of a whole map.
            x = bias
            for info, features, kernel in zip(self.infos, maps, kernels, strict=True):
                sampled = sample_bilinear(features, points, stride=info.stride)
                if column.normalize == "batch":
                    # (images, 1, N, C); pixels of the whole batch are those of one image.
                    rows = sampled.reshape(-1, 1, *sampled.shape[-2:])
                    sampled = self.norms[info.name](rows, train=True).reshape(sampled.shape)
                x = x + self.drop_column(sampled, deterministic=False) @ kernel
        else:
            x = sample_linear(maps, points, kernels, strides=self.strides, bias=bias)
        x = x.astype(maps[0].dtype)
        for kernel, offset in self._layers():
            x = _linear(self.drop(jax.nn.relu(x), deterministic=not train), kernel, offset)
        return x

    @jax.named_scope("mlp")
    def everywhere(self, maps: Maps, size: tuple[int, int]) -> Array:
        """Predictions (B, H, W, channels) at all pixels of images of ``size``, in chunks."""
        kernels, bias = self._first(maps, train=False)
        # Read before the loop over chunks: Flax creates no parameters inside a loop.
        layers = self._layers()

        def head(x: Array) -> Array:
            x = x.astype(maps[0].dtype)
            for kernel, offset in layers:
                x = _linear(jax.nn.relu(x), kernel, offset)
            return x

        config = self.config
        return linear_everywhere(
            maps,
            kernels,
            head,
            strides=self.strides,
            size=size,
            bias=bias,
            offset=config.pad,
            chunk=config.chunk,
        )

    def __call__(self, images: Array) -> Array:
        return self.everywhere(self.maps(images), (images.shape[1], images.shape[2]))

    def _first(self, maps: Maps, *, train: bool) -> tuple[tuple[Array, ...], Array]:
        """The first layer as a kernel for each map, of its dtype, and a bias.

        Outside of training, norms are part of it.
        """
        layer = self.mlp[0]
        ends = [sum(info.channels for info in self.infos[:index]) for index in range(1, len(self.infos))]
        kernels, bias = jnp.split(layer.kernel[0, 0], ends), layer.bias
        assert bias is not None
        if self.config.hypercolumn.normalize == "batch" and not train:
            for index, info in enumerate(self.infos):
                norm = self.norms[info.name].layer()
                bias = bias + norm.offset @ kernels[index]
                kernels[index] = norm.multiplier[:, None] * kernels[index]
        return tuple(kernel.astype(x.dtype) for kernel, x in zip(kernels, maps, strict=True)), bias

    def _layers(self) -> list[tuple[Array, Array]]:
        """(kernel, bias) of the layers above the first."""
        return [(layer.kernel[0, 0], layer.bias) for layer in self.mlp[1:] if layer.bias is not None]


def _linear(x: Array, kernel: Array, bias: Array) -> Array:
    return (x @ kernel.astype(x.dtype) + bias).astype(x.dtype)
