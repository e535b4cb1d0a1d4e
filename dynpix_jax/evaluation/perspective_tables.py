"""The tables of Recurrent Scene Parsing with Perspective Understanding: Kong and Fowlkes, CVPR 2018."""

from __future__ import annotations

from dynpix_jax.evaluation.paper_tables import Row, Table

SEGMENTATION = ("miou", "pixel_accuracy")
DEPTH = ("delta1", "delta2", "delta3")
BLUR = 4
"""Pixels: half a cell of the network's map. Our choice, the paper does not tell its own."""

VARIANTS = (
    ("baseline", "variant=baseline"),
    ("w/ gt-depth", "variant=gt_depth"),
    ("w/ pred-depth", "variant=pred_depth"),
    ("loop1 w/o depth", "variant=baseline,loops=1"),
    ("loop1 w/ gt-depth", "variant=gt_depth,loops=1"),
    ("loop1 w/ pred-depth", "variant=pred_depth,loops=1"),
    ("loop2", "variant=pred_depth,loops=2"),
    ("loop2 (test-aug)", "variant=pred_depth,loops=2,test_aug=True"),
)
"""Rows of table 2."""


def _comparison(source: str, name: str, metrics: tuple[str, ...], values: str, note: str = "") -> Table:
    """A data set's columns of table 2. source: as `SourceSpec` names it. values: a line each row."""
    file = source.replace("_", "")
    rows = tuple(
        Row(network, argument, tuple(float(text) for text in line.split()))
        for (network, argument), line in zip(VARIANTS, values.strip().splitlines(), strict=True)
    )
    title = f"segmentation on {name}"
    config = f"configs/perspective/{file}.py"
    return Table("Table 2", title, config, source, "segmentation", metrics, rows, note)


def _cityscapes(number: str, title: str, rows: tuple[Row, ...], note: str = "") -> Table:
    config = "configs/perspective/cityscapes.py"
    return Table(number, title, config, "cityscapes", "segmentation", ("miou", "iiou"), rows, note)


TABLES: tuple[Table, ...] = (
    Table(
        "Table 1",
        "depth on NYUv2",
        "configs/perspective/nyuv2.py",
        "nyuv2",
        "depth",
        DEPTH,
        (
            Row("ours", "variant=pred_depth,regression=True", (0.809, 0.945, 0.986)),
            Row("ours + blur", f"variant=pred_depth,regression=True,blur={BLUR}", (0.816, 0.950, 0.989)),
        ),
        note=f"neither the paper nor its code tells the blur; {BLUR} pixels are our choice",
    ),
    Table(
        "Section 6.2, footnote",
        "depth on SUN RGB-D",
        "configs/perspective/sunrgbd.py",
        "sun_rgbd",
        "depth",
        DEPTH,
        (Row("ours", "variant=pred_depth,regression=True", (0.754, 0.899, 0.961)),),
    ),
    _comparison(
        "nyuv2",
        "NYUv2",
        SEGMENTATION,
        """
        0.406 0.703
        0.413 0.708
        0.418 0.711
        0.419 0.706
        0.425 0.711
        0.427 0.712
        0.431 0.713
        0.445 0.721
        """,
    ),
    _comparison(
        "sun_rgbd",
        "SUN RGB-D",
        SEGMENTATION,
        """
        0.402 0.776
        0.422 0.787
        0.423 0.789
        0.432 0.793
        0.439 0.798
        0.440 0.798
        0.443 0.799
        0.451 0.803
        """,
    ),
    _comparison(
        "stanford2d3d",
        "Stanford 2D-3D-S",
        SEGMENTATION,
        """
        0.644 0.866
        0.730 0.897
        0.742 0.900
        0.744 0.901
        0.747 0.902
        0.753 0.906
        0.760 0.908
        0.765 0.910
        """,
    ),
    _comparison(
        "cityscapes",
        "Cityscapes",
        ("miou",),
        """
        0.738
        0.753
        0.759
        0.762
        0.769
        0.772
        0.776
        0.791
        """,
        note="images of val; the server of the benchmark gave .782 for test",
    ),
    _cityscapes(
        "Figure 4",
        "gating architectures on Cityscapes",
        (
            Row("baseline", "variant=baseline", (0.738, 0.547)),
            Row("MultiPool, tied, avg.", "variant=average,tied=True", (0.747, 0.554)),
            Row("MultiPool, untied, avg.", "variant=average", (None, None)),
            Row("MultiPool, tied, gt-depth", "variant=gt_depth,tied=True", (0.748, 0.556)),
            Row("MultiPool, untied, gt-depth", "variant=gt_depth", (0.753, 0.561)),
            Row("MultiPool, untied, attention", "variant=attention", (0.754, 0.558)),
            Row("MultiPool, untied, pred-depth", "variant=pred_depth", (0.759, 0.571)),
            Row("MultiScale, tied, avg.", "variant=average,pooling=multiscale,tied=True", (None, None)),
            Row("MultiScale, untied, avg.", "variant=average,pooling=multiscale", (None, None)),
            Row(
                "MultiScale, tied, pred-depth",
                "variant=pred_depth,pooling=multiscale,tied=True",
                (None, None),
            ),
            Row("MultiScale, untied, pred-depth", "variant=pred_depth,pooling=multiscale", (None, None)),
        ),
        note="the figure has bars; scores are those that the supplement's table prints of the same networks",
    ),
    _cityscapes(
        "Supplement, table 1",
        "depth-aware gating on Cityscapes",
        (
            Row("baseline", "variant=baseline", (0.738, 0.547)),
            Row("tied, avg.", "variant=average,tied=True", (0.747, 0.554)),
            Row("gt-depth, tied, gating", "variant=gt_depth,tied=True", (0.748, 0.556)),
            Row("gt-depth, untied, gating", "variant=gt_depth", (0.753, 0.561)),
            Row("attention, untied, gating", "variant=attention", (0.754, 0.558)),
            Row("pred-depth, untied, gating", "variant=pred_depth", (0.759, 0.571)),
        ),
        note="the scores of every class are in a run's eval.json (per_class)",
    ),
)
"""Rows without those of other authors. Scores are on the test or validation set, as the paper has them."""
