"""The network of PAG: a backbone whose blocks have gates or MultiPools, Res6, and heads by deconvolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.backbones.base import BuildOptions, Stage
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.task import Task
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.parameters import parameter
from dynpix_jax.nn.residual import Block, BlockSpec
from dynpix_jax.ops.columns import apart, columns_together
from dynpix_jax.ops.pointwise import pointwise
from dynpix_jax.papers.pag.config import PagConfig, gated_blocks, kept_specs, kept_stages
from dynpix_jax.papers.pag.layers import (
    BlockOutputs,
    CutBlock,
    GatedBlock,
    MultiPoolBlock,
    PagBlock,
    Res6,
    SkippedBlock,
)


def bilinear_taps(stride: int) -> Array:
    """(2 * stride,) triangle of width 2 * stride - 1 and a zero; its peak, 1, lies on the input cell."""
    return jnp.maximum(1.0 - jnp.abs(jnp.arange(2 * stride) - (stride - 1.0)) / stride, 0.0)


class Deconv(nn.Module):
    """Transposed convolution by ``stride``: (B, h, w, features) -> (B, H, W, features) for ``size`` = (H, W).

    With ``columns`` of them side by side in the channels, as `ops.columns.together` places them.

    The kernel has 2 * stride taps per side and starts as bilinear interpolation of every channel. Output
    pixel ``stride * i`` lies on input cell ``i``, as a ResNet's padding places its features (a centred
    deconvolution would shift the map by (stride - 1) / 2 pixels). Pixels from ``stride * (h - 1) + 1`` on
    repeat the last cell: zeros would let the features fade out. It is a matrix product over 2x2 input cells:
    a zero-stuffed convolution is slow on a CPU.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], columns: int = 1) -> Array:
        s, c = self.stride, self.features
        if s * x.shape[1] < size[0] or s * x.shape[2] < size[1]:
            raise ValueError(f"size: {size} is more than stride {s} times the input {x.shape[1:3]}")

        def bilinear(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            taps = bilinear_taps(s).astype(dtype)
            return jnp.einsum("y,x,io->yxio", taps, taps, jnp.eye(c, dtype=dtype))

        kernel = parameter(self, "kernel", bilinear, (2 * s, 2 * s, c, c)).astype(x.dtype)
        # Every s x s block of the output sees 2 x 2 input cells: one matrix product over their channels.
        b, h, w, _ = x.shape
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
        padded = jnp.pad(padded, ((0, 0), (1, 0), (1, 0), (0, 0)))
        cells = [padded[:, 1 - i : h + 2 - i, 1 - j : w + 2 - j] for i in (0, 1) for j in (0, 1)]
        # (y block, y in block, x block, x in block, in, out) -> (y block, x block, in), (y, x, out)
        matrix = kernel.reshape(2, s, 2, s, c, c).transpose(0, 2, 4, 1, 3, 5).reshape(4 * c, s * s * c)
        blocks = pointwise(jnp.concatenate(cells, axis=-1), matrix).reshape(b, h + 1, w + 1, s, s * c)
        rows = blocks.transpose(0, 1, 3, 2, 4).reshape(b, (h + 1) * s, (w + 1) * s * c)
        inside = rows[:, s - 1 : s - 1 + size[0], (s - 1) * c : (s - 1 + size[1]) * c]
        return inside.reshape(b, size[0], size[1] // columns, columns * c)


class DeconvDecoder(nn.Module):
    """Deconvolution first, then convolutions at full resolution (section 4).

    (B, h, w, in_features) at ``stride`` -> (B, H, W, out_features) logits.

    1x1 reduction to ``features`` with ReLU, deconvolution by ``stride``, ``layers`` 3x3 convolutions with
    ReLU, 3x3 convolution to the logits: the convolutions after the up-sampling see the fine details.
    """

    in_features: int
    features: int
    out_features: int
    stride: int
    layers: int = 1

    def setup(self) -> None:
        self.reduce = Conv(self.in_features, self.features, 1, use_bias=True)
        self.deconv = Deconv(self.features, self.stride)
        self.convs = [
            Conv(self.features, self.features, 3, use_bias=True, name=f"conv{index or ''}")
            for index in range(self.layers)
        ]
        self.logits = Conv(
            self.features, self.out_features, 3, use_bias=True, kernel_init=nn.initializers.normal(0.01)
        )

    def __call__(self, x: Array, size: tuple[int, int]) -> Array:
        columns = columns_together(self.features, size[1])
        x = self.deconv(jax.nn.relu(self.reduce(x)), size, columns)
        for conv in self.convs:
            x = jax.nn.relu(conv.side_by_side(x, columns))
        return apart(self.logits.side_by_side(x, columns), columns)


class TopHead(nn.Module):
    """A decoder above the last stage, without side outputs.

    ({stage: features}, (H, W)) -> (logits (B, H, W, out_features), ()).
    """

    stage: Stage
    features: int
    out_features: int
    layers: int = 1

    def setup(self) -> None:
        stage = self.stage
        self.decoder = DeconvDecoder(
            stage.channels, self.features, self.out_features, stage.stride, self.layers
        )

    def __call__(self, features: dict[str, Array], size: tuple[int, int]) -> tuple[Array, tuple[Array, ...]]:
        return self.decoder(features[self.stage.name], size), ()


class BoundaryHead(nn.Module):
    """One decoder per macro block (Res2 ... Res5) and a 1x1 fusion that starts as their mean.

    ({stage: features}, (H, W)) -> (fused logits (B, H, W, 1), side logits, one (B, H, W, 1) per stage).
    """

    stages: tuple[Stage, ...]
    features: int = 16
    layers: int = 1

    def setup(self) -> None:
        self.decoders = [
            DeconvDecoder(stage.channels, self.features, 1, stage.stride, self.layers, name=stage.name)
            for stage in self.stages
        ]
        share = 1.0 / len(self.stages)
        self.fusion = Conv(len(self.stages), 1, 1, use_bias=True, kernel_init=nn.initializers.constant(share))

    def __call__(self, features: dict[str, Array], size: tuple[int, int]) -> tuple[Array, tuple[Array, ...]]:
        sides = tuple(
            decoder(features[stage.name], size)
            for decoder, stage in zip(self.decoders, self.stages, strict=True)
        )
        return self.fusion(jnp.concatenate(sides, axis=-1)), sides


def pag_block(config: PagConfig, spec: BlockSpec, make: Callable[..., Block]) -> PagBlock:
    """A hook (see backbones.base): the block of a spec with a MultiPool, with a gate, cut, or plain."""
    block, gate, pool = make(parent=None), config.gate, config.multipool
    gated = spec.name in gated_blocks(config)
    cut = config.drop_layers if spec == kept_specs(config)[-1] else 0
    if spec.name in pool.blocks:
        return MultiPoolBlock(
            block,
            pool.dilations,
            pool.selection,
            pool.original_bias,
            gate.options if gated else None,
            expands=not cut,
            name=spec.name,
        )
    if cut:
        return CutBlock(block, cut, name=spec.name)
    if not gated:
        return PagBlock(block, name=spec.name)
    if gate.options.whole_images:
        return SkippedBlock(block, gate.options, name=spec.name)
    return GatedBlock(block, gate.options, gate.scope, name=spec.name)


class PagNetwork(nn.Module):
    """The network of a PagConfig: backbone with gated and MultiPool blocks, and a head.

    A task with side outputs (boundaries) has a decoder for each and their fusion (section 4.1); every other
    task has one decoder above the backbone, or above Res6.
    """

    config: PagConfig
    task: Task

    def setup(self) -> None:
        config = self.config
        stages, pool = kept_stages(config), config.multipool
        hook = partial(pag_block, config)
        self.backbone = config.backbone.build(BuildOptions(hook=hook, drop_blocks=config.drop_blocks))
        self.top = stages[-1]
        if config.res6:
            specs = kept_specs(config)
            # As wide as the top block's 3x3.
            features = specs[-1].features if specs else self.top.channels
            self.res6 = Res6(
                self.top.channels,
                features,
                pooled="res6" in pool.blocks,
                dilations=pool.dilations,
                selection=pool.selection,
                original_bias=pool.original_bias,
            )
            stages = (*stages[:-1], Stage("res6", features, self.top.stride))
        if self.task.side_outputs:
            self.head: nn.Module = BoundaryHead(stages, config.head_features, config.head_layers)
        else:
            self.head = TopHead(stages[-1], config.head_features, self.task.channels, config.head_layers)

    def __call__(
        self,
        images: Array,
        routing: Routing = Routing(),
        inserted: Array | None = None,
    ) -> Outputs:
        """The forward pass.

        Args:
            images: (B, H, W, 3) RGB in 0..255, any dtype.
            routing: How to run the pass.
            inserted: Number of gates in force, from the top; the others stay open. None: all.
        """
        order = gated_blocks(self.config)
        given = routing.masks_of(order)
        told: dict[str, BlockOutputs] = {}

        def run_block(block: PagBlock, x: Array) -> tuple[Array, BlockOutputs]:
            name, in_force = str(block.name), jnp.asarray(True)
            if name in order and inserted is not None:
                in_force = order.index(name) >= len(order) - inserted
            found: tuple[Array, BlockOutputs] = block(x, routing, in_force=in_force, given=given.get(name))
            return found

        x = self.config.backbone.preprocess(images)
        if self.config.backbone.block_specs:
            features, told = self.backbone.run(x, run_block, train=routing.train)
        else:
            features = self.backbone(x, train=routing.train)
        gates = {name: one.mask for name, one in told.items() if one.mask is not None}
        probabilities = {name: one.probability for name, one in told.items() if one.probability is not None}
        selections = {name: one.selection for name, one in told.items() if one.selection is not None}
        if self.config.res6:
            features["res6"], selection = self.res6(features[self.top.name], routing)
            if selection is not None:
                selections["res6"] = selection
        logits, sides = self.head(features, (images.shape[1], images.shape[2]))
        return Outputs(
            predictions={self.task.name: logits},
            gates=gates,
            selections=selections,
            exits=tuple({self.task.name: side} for side in sides),
            probabilities=probabilities if routing.train or given else {},
        )
