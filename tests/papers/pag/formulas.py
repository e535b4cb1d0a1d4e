"""The MACs of PAG's gated layers by closed formulas, against which those counted by scopes are held."""

from __future__ import annotations

import math

from dynpix_jax.nn.residual import BlockSpec
from dynpix_jax.papers.pag.config import PagConfig, gated_blocks, kept_specs


def gated_macs(config: PagConfig, size: tuple[int, int]) -> dict[str, float]:
    """Per gate what its block saves; per MultiPool branch (``res4_2/dilation_2``) its convolution."""
    macs: dict[str, float] = {}
    gated, pool = set(gated_blocks(config)), config.multipool
    strides = {stage.name: stage.stride for stage in config.backbone.stages}

    def positions(spec: BlockSpec) -> int:
        return math.prod(-(-side // strides[spec.stage]) for side in size)

    def branches(name: str, spec: BlockSpec) -> dict[str, float]:
        conv3x3 = 9.0 * positions(spec) * spec.features**2
        return {f"{name}/dilation_{d}": conv3x3 for d in pool.dilations if d and pool.selection == "pag"}

    for spec in kept_specs(config):
        conv3x3 = 9.0 * positions(spec) * spec.features**2
        expand = float(positions(spec) * spec.features * spec.out_features)
        if spec.name in gated and not config.gate.options.whole_images:
            macs[spec.name] = conv3x3 + (expand if config.gate.scope == "residual" else 0.0)
        elif spec.name in gated and config.gate.options.whole_images:
            reduce = positions(spec) * spec.in_features * spec.features
            macs[spec.name] = conv3x3 + expand + reduce
        elif spec.name in pool.blocks:
            macs |= branches(spec.name, spec)
    if "res6" in pool.blocks:
        # It has the resolution and the width of the backbone's last block.
        macs |= branches("res6", kept_specs(config)[-1])
    return macs
