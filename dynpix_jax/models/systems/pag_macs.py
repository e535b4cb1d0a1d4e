"""What PAG's gates and pooling choices save, and where they computed: MACs, executed shares, ponder maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynpix_jax.models.backbones.resnet import feature_info
from dynpix_jax.models.system import Outputs
from dynpix_jax.models.systems.pag_config import PagConfig, gated_blocks, kept_specs
from dynpix_jax.typing import Array


def gated_macs(config: PagConfig, size: tuple[int, int]) -> dict[str, float]:
    """Per gate what its block saves; per MultiPool branch (``res4_2/dilation_2``) its convolution."""
    macs: dict[str, float] = {}
    gated = set(gated_blocks(config))
    strides = {info.name: info.stride for info in feature_info(config.backbone)}
    for spec in kept_specs(config):
        h, w = (-(-side // strides[spec.name.split("_")[0]]) for side in size)
        conv3x3 = 9.0 * h * w * spec.features**2
        expand = float(h * w * spec.features * spec.out_features)
        if spec.name in gated and config.gate.kind == "pixel":
            macs[spec.name] = conv3x3 + (expand if config.gate.scope == "residual" else 0.0)
        elif spec.name in gated:
            reduce = h * w * spec.in_features * spec.features
            macs[spec.name] = conv3x3 + expand + reduce
        elif spec.name in config.multipool.blocks and config.multipool.selection == "pag":
            macs |= {f"{spec.name}/dilation_{d}": conv3x3 for d in config.multipool.dilations if d}
    return macs


def executed_shares(config: PagConfig, outputs: Outputs) -> dict[str, Array]:
    """Share of positions (B,) at which each layer of ``gated_macs`` was executed."""
    shares = {name: mask.mean((1, 2)) for name, mask in outputs.gates.items()}
    pool = config.multipool
    for name, selection in outputs.selections.items():
        for index, dilation in enumerate(pool.dilations):
            if dilation and pool.selection == "pag":
                shares[f"{name}/dilation_{dilation}"] = selection[..., index].mean((1, 2))
    return shares


def ponder_maps(outputs: Outputs, size: tuple[int, int]) -> dict[str, Array]:
    """Accumulated masks, as shares in [0, 1]: one (B, H, W) map a macro block and ``total`` (section 3.3)."""
    if not outputs.gates:
        return {}
    groups: dict[str, list[Array]] = {}
    for name, mask in outputs.gates.items():
        resized = jax.image.resize(mask, (mask.shape[0], *size), "nearest")
        groups.setdefault(name.split("_")[0], []).append(resized)
        groups.setdefault("total", []).append(resized)
    total = jnp.stack(groups.pop("total")).mean(0)
    return {stage: jnp.stack(masks).mean(0) for stage, masks in groups.items()} | {"total": total}
