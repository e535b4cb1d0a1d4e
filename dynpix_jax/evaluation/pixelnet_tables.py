"""The tables of PixelNet (Bansal et al., arXiv 1609.06694) that are about scores. Table 4, about memory and
speed, is ``benchmarks/pixelnet_sampling.py``'s."""

from __future__ import annotations

from dynpix_jax.evaluation.paper_tables import Row, Table

CONTEXT = ("mean_accuracy", "miou")
"""The paper's AC and IU: the accuracies of FCN-8s that it prints beside its own are means over classes."""
BOUNDARIES = ("ods", "ois", "ap")
SCALES = "test_scales=0.5+1.0"


def _context(number: str, title: str, values: dict[str, tuple[str, float, float]], note: str = "") -> Table:
    """values: network -> (argument, AC and IU in percent)."""
    rows = tuple(
        Row(network, argument, (round(accuracy / 100, 6), round(iou / 100, 6)))
        for network, (argument, accuracy, iou) in values.items()
    )
    config = "configs/pixelnet/pascal_context.py"
    return Table(number, title, config, "pascal_context", "segmentation", CONTEXT, rows, note)


def _scales(classes: int, values: str) -> Table:
    """Table 3's columns for so many classes. values: a line each row, as printed there."""
    networks = {
        "baseline": "",
        "conv7 (0.25,0.5)": "conv7,train_scales=small,test_scales=0.25+0.5",
        "conv7 (0.5)": "conv7",
        "conv7 (0.5-1.0)": "conv7,train_scales=full,test_scales=1.0",
        "conv7 (0.5-0.25,0.5,1.0)": "conv7,train_scales=multi,test_scales=0.25+0.5+1.0",
    }
    rows: dict[str, tuple[str, float, float]] = {}
    for (network, argument), line in zip(networks.items(), values.strip().splitlines(), strict=True):
        accuracy, iou = map(float, line.split())
        rows[network] = (f"classes={classes}{argument and ','}{argument}", accuracy, iou)
    return _context("Table 3", f"segmentation on PASCAL-Context, {classes} classes", rows)


def _bsds500(number: str, title: str, rows: tuple[Row, ...], note: str = "") -> Table:
    config = "configs/pixelnet/bsds500.py"
    return Table(number, title, config, "bsds500", "boundaries", BOUNDARIES, rows, note)


TABLES: tuple[Table, ...] = (
    _context(
        "Table 1",
        "layers of the MLP and their width, on PASCAL-Context",
        {
            "baseline (fc-3, d-4096)": ("width=4096", 44.0, 34.9),
            "fc-1": ("fc=1", 2.8, 0.7),
            "fc-2": ("fc=2,width=4096", 1.7, 0.1),
            "d-1024": ("width=1024", 41.6, 33.2),
            "d-2048": ("width=2048", 43.2, 34.2),
            "d-6144": ("width=6144", 44.2, 35.1),
        },
    ),
    _context(
        "Table 2",
        "pixels of an image x images a step, on PASCAL-Context",
        {
            "baseline (2000 x 5)": ("pixels=2000,images=5", 44.0, 34.9),
            "500 x 5": ("pixels=500,images=5", 43.7, 34.8),
            "1000 x 5": ("pixels=1000,images=5", 43.8, 34.7),
            "4000 x 5": ("pixels=4000,images=5", 43.9, 34.9),
            "2000 x 1": ("pixels=2000,images=1", 32.6, 24.6),
            "10000 x 1": ("pixels=10000,images=1", 33.3, 25.2),
        },
        note="2000 x 5 and 2000 x 1 train one network: a run of either is shown for both",
    ),
    _scales(
        59,
        """
        44.0 34.9
        46.7 37.1
        47.5 37.4
        48.1 37.6
        51.5 41.4
        """,
    ),
    _scales(
        33,
        """
        62.5 51.1
        66.6 54.8
        66.3 54.0
        67.3 54.5
        69.5 56.9
        """,
    ),
    Table(
        "Section 4.1",
        "segmentation on PASCAL VOC 2012",
        "configs/pixelnet/voc2012.py",
        "voc2012",
        "segmentation",
        ("miou",),
        (Row("ours", "conv7,train_scales=multi,test_scales=0.25+0.5+1.0", (0.697,)),),
        note="the paper's is of the test set, whose labels are not public",
    ),
    Table(
        "Table 5",
        "normals on NYUv2",
        "configs/pixelnet/nyuv2_normals.py",
        "nyuv2",
        "normals",
        ("mean", "median", "rmse", "within_11", "within_22", "within_30"),
        (Row("ours", "task=normals", (19.8, 12.0, 28.2, 0.479, 0.700, 0.778)),),
        note="the paper's truth is Ladicky et al.'s, ours is fitted to the depth: scores do not compare",
    ),
    _bsds500(
        "Table 6",
        "boundaries on BSDS500: the share of boundary pixels in the sample",
        (
            Row("uniform", "rare=0", (0.767, 0.786, 0.800)),
            Row("25%", "rare=0.25", (0.792, 0.808, 0.826)),
            Row("50%", "rare=0.5", (0.791, 0.807, 0.823)),
            Row("75%", "rare=0.75", (0.790, 0.805, 0.818)),
        ),
        note="ours are evaluated at full size; the paper's 25 % is table 7's at both sizes",
    ),
    _bsds500(
        "Table 7",
        "boundaries on BSDS500: conv-7 and sizes",
        (
            Row("(25%)-(0.5x,1.0x)", f"rare=0.25,{SCALES}", (0.792, 0.808, 0.826)),
            Row("conv7 (25%)-(0.5x,1.0x)", f"conv7,rare=0.25,{SCALES}", (0.795, 0.811, 0.825)),
            Row("(50%)-(0.5x,1.0x)", f"rare=0.5,{SCALES}", (0.791, 0.807, 0.823)),
            Row("conv7 (50%)-(0.5x,1.0x)", f"conv7,rare=0.5,{SCALES}", (0.795, 0.811, 0.830)),
            Row("conv7 (25%)-(1.0x)", "conv7,rare=0.25,train_scales=full", (0.792, 0.808, 0.837)),
            Row("conv7 (50%)-(1.0x)", "conv7,rare=0.5,train_scales=full", (0.791, 0.803, 0.840)),
        ),
        note="the paper prints both 50 % rows a second time, without sizes",
    ),
)
"""Boundaries are scored on the 200 test images of BSDS500, PASCAL-Context on its val."""
