"""The cells of the anytime paper's table 3."""

from __future__ import annotations

from dynpix_jax.papers.mdeq.config import CellConfig

CELLS = {
    "small": CellConfig(),
    "xl": CellConfig(channels=(88, 176, 352, 704), expansion=6, dropout=0.04),
}
"""Of the variants of configs/mdeq."""
