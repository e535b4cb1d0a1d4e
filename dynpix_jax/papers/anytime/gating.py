"""Convolutions that a mask skips, by stage and resolution, and their share of MACs under a mask.

Only convolutions are counted, as in the HRNet family's papers, no resizing. Their MACs are those that `flops`
counts in the program; here stands what interpolation adds to them, which a dense program does not show.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dynpix_jax.core.capabilities import GatedLayer
from dynpix_jax.core.progressive import STEP_SCOPE
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.core.typing import Array, Params
from dynpix_jax.ops.resize import resize_nearest
from dynpix_jax.papers.anytime.config import AnytimeConfig
from dynpix_jax.papers.anytime.network import spans


@dataclass(frozen=True)
class MaskedConvs:
    """The convolutions of a stage, or of the exit after it, whose outputs have one resolution.

    Attributes:
        mask: Name of their mask, "stage3".
        halvings: Number of halvings from the mask's size to that of their outputs.
        rounds_up: Whether an odd side is rounded up when it is halved (strides) or down (pooling).
        interpolation: MACs of interpolation per MAC of convolution, at positions that have both.
        scopes: See GatedLayer.
    """

    mask: str
    halvings: int
    rounds_up: bool
    interpolation: float
    scopes: tuple[str, ...]

    @property
    def layer(self) -> GatedLayer:
        """The layer for the count of MACs."""
        return GatedLayer(self.scopes)

    def share(self, mask: Array) -> Array:
        """Share (B,) of the MACs that remain under a mask (B, h, w).

        p + p (1 - p) times 49 MACs per feature (with a radius of 3), where p is the density of the mask at
        their resolution: the released code's count of convolutions and of the interpolation of skipped
        positions, each of which reads its computed neighbours only.
        """
        height, width = mask.shape[1], mask.shape[2]
        for _ in range(self.halvings):
            height, width = ((side + self.rounds_up) // 2 for side in (height, width))
        p = resize_nearest(mask, (height, width)).mean((1, 2))
        return p + p * (1 - p) * self.interpolation


def masked_convs(config: AnytimeConfig, params: Params) -> dict[str, MaskedConvs]:
    """All masked convolutions after the first exit, by names like "stage3_stride8", "exit3_stride16"."""
    if config.adaptivity is None:
        return {}
    window = (2 * config.adaptivity.radius + 1) ** 2
    kernels = {path: leaf.shape for path, leaf in named_leaves(params) if path.endswith("/kernel")}
    found: dict[str, MaskedConvs] = {}

    def note(number: int, place: str, halvings: int, pattern: str) -> None:
        shapes = [shape for path, shape in kernels.items() if re.fullmatch(pattern, path)]
        if shapes:
            # Per output position: a MAC for each weight of a convolution, a window for each feature.
            macs = sum(rows * columns * below * above for rows, columns, below, above in shapes)
            interpolation = window * sum(shape[-1] for shape in shapes) / macs
            scopes = (rf"{STEP_SCOPE}\d+/{pattern}",)
            name = f"{place}{number}_stride{4 * 2**halvings}"
            found[name] = MaskedConvs(f"stage{number}", halvings, place == "stage", interpolation, scopes)

    for number in (number for span in spans(config.exits)[1:] for number in span):
        for branch in range(4):
            note(number, "stage", branch, _of_branch(number, branch))
        if number in config.exits:
            for halvings in range(4):
                note(number, "exit", halvings, _of_head(config, number, halvings))
    return found


def _of_branch(number: int, branch: int) -> str:
    """Regex of a stage's convolutions whose outputs have that branch's resolution."""
    fused = [rf"fuse_\d_{branch}"]  # from it, before they are enlarged
    fused += [rf"fuse_\d_{source}_{branch - source - 1}" for source in range(branch)]  # on the way down
    inside = rf"stage{number}_\d+/(branch{branch}_\d+|{'|'.join(fused)})"
    # Scopes name the stage above its modules; parameters do not.
    return rf"backbone/(stage{number}/)?(transition{number - 1}_{branch}|{inside})/.*"


def _of_head(config: AnytimeConfig, number: int, halvings: int) -> str:
    """Regex of the convolutions of an exit's head whose inputs were pooled ``halvings`` times."""
    if number == 4 or config.heads.kind == "plain":
        units = ["unit", "classify"] if halvings == 0 else []
    else:
        depth = config.heads.downsampling[number - 1]
        units = [f"down_{halvings - 1}"] if 0 < halvings <= depth else []
        units += [f"up_{depth - 1 - halvings}"] if 0 < halvings < depth else []
        units += ["classify"] if halvings == 0 else []
    return rf"exit{number}/({'|'.join(units) or '(?!)'})/.*"
