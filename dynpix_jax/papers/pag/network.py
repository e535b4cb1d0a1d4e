"""The network of PAG: a backbone whose blocks have gates or MultiPools, Res6, and a head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from dynpix_jax.backbones.base import BuildOptions, Stage
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.task import Task
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.residual import Block, BlockSpec
from dynpix_jax.papers.pag.boundary_head import BoundaryHead
from dynpix_jax.papers.pag.config import PagConfig, gated_blocks, kept_specs, kept_stages
from dynpix_jax.papers.pag.decoder import TopHead
from dynpix_jax.papers.pag.layers import GatedBlock, MultiPoolBlock, PagBlock, SkippedBlock
from dynpix_jax.papers.pag.res6 import Res6


def pag_block(config: PagConfig, spec: BlockSpec, make: Callable[..., Block]) -> PagBlock:
    """The block of a spec: with a MultiPool, with a gate, or plain. A hook, see backbones.base."""
    block, gate, pool = make(parent=None), config.gate, config.multipool
    if spec.name in pool.blocks:
        return MultiPoolBlock(block, pool.dilations, pool.selection, pool.original_bias, name=spec.name)
    if spec.name not in gated_blocks(config):
        return PagBlock(block, name=spec.name)
    if gate.options.whole_images:
        return SkippedBlock(block, gate.options, name=spec.name)
    return GatedBlock(block, gate.options, gate.scope, name=spec.name)


class PagNetwork(nn.Module):
    """The network of a PagConfig: backbone with gated and MultiPool blocks, and a head.

    A task with side outputs (boundaries) has those and their fusion (section 4.1); every other task has one
    decoder above the backbone, or above Res6.
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
            self.head: nn.Module = BoundaryHead(stages, config.head_features)
        else:
            self.head = TopHead(stages[-1], config.head_features, self.task.channels)

    def __call__(
        self,
        images: Array,
        routing: Routing = Routing(),
        inserted: Array | None = None,
    ) -> Outputs:
        """The forward pass.

        Args:
            images: (B, H, W, 3) RGB in 0..255, any dtype.
            routing: how it is run.
            inserted: how many gates are in force, counted from the top; the others stay open. None: all.
        """
        order = gated_blocks(self.config)
        given = routing.masks_of(order)
        gates: dict[str, Array] = {}
        probabilities: dict[str, Array] = {}
        selections: dict[str, Array] = {}

        def run_block(block: PagBlock, x: Array) -> Array:
            name, in_force = str(block.name), jnp.asarray(True)
            if name in order and inserted is not None:
                in_force = order.index(name) >= len(order) - inserted
            x, told = block(x, routing, in_force=in_force, given=given.get(name))
            if told.mask is not None and told.probability is not None:
                gates[name], probabilities[name] = told.mask, told.probability
            if told.selection is not None:
                selections[name] = told.selection
            return x

        x = self.config.backbone.preprocess(images)
        if self.config.backbone.block_specs:
            features = self.backbone(x, train=routing.train, run_block=run_block)
        else:
            features = self.backbone(x, train=routing.train)
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
