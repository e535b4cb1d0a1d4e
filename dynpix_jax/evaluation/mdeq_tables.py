"""MDEQ in the anytime paper's tables (Liu, Darrell and Shelhamer, ICLR 2022): accuracy by iterations."""

from __future__ import annotations

from collections.abc import Sequence

from dynpix_jax.evaluation.paper_tables import Row, Table
from dynpix_jax.papers.mdeq.config import CellConfig
from dynpix_jax.papers.mdeq.macs import counted_macs

CELLS = {
    "small": CellConfig(),
    "xl": CellConfig(channels=(88, 176, 352, 704), expansion=6, dropout=0.04),
}
"""Of the variants of configs/mdeq."""

CLASSES, SIZE = 19, (1024, 2048)

# mIoU in percent and GFLOPs of iterations 1 to 27.
_SMALL = (
    *((1.1, 227.2), (1.1, 325.3), (9.0, 423.5), (17.3, 521.6), (38.7, 619.7), (38.7, 717.9), (61.0, 816.0)),
    *((65.5, 914.2), (70.1, 1012.3), (72.4, 1110.5), (73.8, 1208.5), (74.6, 1306.7), (75.1, 1404.8)),
    *((75.5, 1503.0), (75.8, 1601.1), (75.9, 1699.3), (76.1, 1797.4), (76.2, 1895.5), (76.2, 1993.7)),
    *((76.2, 2091.8), (76.2, 2190.0), (76.1, 2288.1), (76.2, 2386.2), (76.3, 2484.4), (76.4, 2582.5)),
    *((76.5, 2680.7), (76.5, 2778.8)),
)
_XL = (
    *((1.9, 1983.0), (1.9, 2861.3), (8.0, 3739.6), (11.6, 4617.9), (34.1, 5496.2), (49.4, 6374.5)),
    *((58.6, 7252.9), (67.1, 8131.2), (71.6, 9009.5), (74.5, 9887.8), (76.1, 10766.1), (77.3, 11644.4)),
    *((77.9, 12522.7), (78.7, 13401.0), (79.1, 14279.3), (79.3, 15157.6), (79.5, 16036.0), (79.6, 16914.3)),
    *((79.6, 17792.6), (79.7, 18670.9), (79.8, 19549.2), (79.9, 20427.5), (79.9, 21305.8), (79.9, 22184.2)),
    *((79.9, 23062.5), (79.8, 23940.8), (79.8, 24819.1)),
)

_NOTE = (
    "The paper's GFLOPs are MACs / 2**30 of stem, head and 2 (n + 1) applications of f after n iterations: "
    "its counter meets f twice. f runs n + 1 times. eval.py makes the rows of the config's read_out"
)


def _table(variant: str, title: str, rows: Sequence[tuple[float, float]]) -> Table:
    return Table(
        number="Table 3",
        title=title,
        config="configs/mdeq/cityscapes.py",
        source="cityscapes",
        task="segmentation",
        metrics=("miou",),
        rows=tuple(
            Row(
                f"iteration {n}",
                f"variant={variant}",
                (round(miou / 100, 3),),
                macs=gflops * 2**30,
                alternative=f"iterations_{n}",
                counted=counted_macs(CELLS[variant], CLASSES, SIZE, n),
            )
            for n, (miou, gflops) in enumerate(rows, 1)
        ),
        note=_NOTE,
        gibi=True,
    )


TABLES = (
    _table("small", "MDEQ-small on Cityscapes (iterations 4, 6, 8, 10 are in table 1)", _SMALL),
    _table("xl", "MDEQ-XL on Cityscapes", _XL),
)
