"""The tables of PAG: Kong and Fowlkes, WACV 2019; arXiv 1805.01556, tables 6 to 10 in its appendix."""

from __future__ import annotations

from collections.abc import Iterable

from dynpix_jax.evaluation.paper_tables import Row, Table

POOLS = {
    "Res3": "res3_2",
    "Res4": "res4_2",
    "Res5": "res5_2",
    "Res6": "res6",
    "Res3-4": "res3_2+res4_2",
    "Res4-5": "res4_2+res5_2",
    "Res5-6": "res5_2+res6",
    "Res3-5": "res3_2+res4_2+res5_2",
    "Res4-6": "res4_2+res5_2+res6",
    "Res3-6": "res3_2+res4_2+res5_2+res6",
}
"""Where the paper inserts MultiPool -> the blocks: the second of each macro block (section 5.2, figure 6)."""

SEGMENTATION = ("miou", "pixel_accuracy")
DEPTH = ("delta1", "delta2", "delta3")
NORMALS = ("mean", "within_11", "within_22", "within_30")


def _pooled(scores: dict[str, tuple[float, ...]], before: str = "", variant: str = "multipool") -> list[Row]:
    """Rows that differ in where MultiPool is, by the paper's names of the places."""
    return [
        Row(f"MP@{place}", f"{before}variant={variant},multipool={POOLS[place]}", values)
        for place, values in scores.items()
    ]


def _comparison(
    number: str, task: str, source: str, title: str, metrics: tuple[str, ...], values: str, base: str = ""
) -> Table:
    """A data set's columns of table 3, 4 or 5. values: a line each row, base first, as printed there."""
    networks = (
        ("baseline", base or f"task={task}"),
        ("MP@Res5 (w-Avg.)", f"task={task},variant=average"),
        ("MP@Res5 (PAG)", f"task={task},variant=multipool"),
        *((f"MP@Res5 (ρ={rho})", f"task={task},variant=gated,rho={rho}") for rho in ("0.9", "0.7", "0.5")),
    )
    lines = [line.split() for line in values.strip().splitlines()]
    rows = tuple(
        Row(
            network,
            argument,
            tuple(_printed(text, name) for text, name in zip(line, metrics, strict=True)),
        )
        for (network, argument), line in zip(networks, lines, strict=True)
    )
    return Table(number, title, f"configs/pag/{source}.py", source, task, metrics, rows)


def _printed(text: str, metric: str) -> float:
    """All but angles are in percent."""
    return float(text) if metric == "mean" else round(float(text) / 100, 6)


def _nyuv2(
    number: str, task: str, title: str, metrics: tuple[str, ...], rows: Iterable[Row], note: str = ""
) -> Table:
    return Table(number, title, "configs/pag/nyuv2.py", "nyuv2", task, metrics, tuple(rows), note)


TABLES: tuple[Table, ...] = (
    Table(
        "Table 1",
        "boundaries on BSDS500: where to insert MultiPool",
        "configs/pag/bsds500.py",
        "bsds500",
        "boundaries",
        ("ods",),
        (
            Row("base", "variant=base", (0.7900,)),
            *_pooled(
                {
                    "Res3": (0.7919,),
                    "Res4": (0.7919,),
                    "Res5": (0.7914,),
                    "Res4-5": (0.7918,),
                    "Res3-5": (0.7907,),
                }
            ),
        ),
    ),
    _nyuv2(
        "Table 1",
        "segmentation",
        "segmentation on NYUv2: where to insert MultiPool",
        ("miou",),
        (
            Row("base", "task=segmentation", (0.4205,)),
            *_pooled(
                {
                    "Res3": (0.4413,),
                    "Res4": (0.4567,),
                    "Res5": (0.4652,),
                    "Res6": (0.4599,),
                    "Res4-5": (0.4548,),
                    "Res3-5": (0.4483,),
                    "Res4-6": (0.4497,),
                    "Res5-6": (0.4644,),
                    "Res3-6": (0.4402,),
                },
                "task=segmentation,",
            ),
        ),
    ),
    Table(
        "Figure 5",
        "boundaries on BSDS500: accuracy at a budget",
        "configs/pag/bsds500.py",
        "bsds500",
        "boundaries",
        ("ods",),
        (
            Row("MP@Res4 (PAG)", "variant=multipool", (0.792,)),
            Row("MP@Res4 (ρ=0.5)", "variant=gated,gate_scope=residual,rho=0.5", (0.773,)),
        ),
        note="the paper's ρ=0.5 saves about 30 %, which only the residual scope can",
    ),
    _nyuv2(
        "Table 2",
        "segmentation",
        "segmentation on NYUv2: budgets, beside truncated networks and skipped layers",
        SEGMENTATION,
        (
            Row(
                "truncated (ρ=0.5)",
                "task=segmentation,variant=truncated,drop_blocks=2",
                (0.3630, 0.6736),
                6.29e10,
            ),
            Row(
                "truncated (ρ=0.7)",
                "task=segmentation,variant=truncated,drop_blocks=1",
                (0.3769, 0.6744),
                8.27e10,
            ),
            Row(
                "truncated (ρ=0.9)",
                "task=segmentation,variant=truncated,drop_blocks=1",
                (0.4029, 0.6966),
                8.95e10,
            ),
            Row(
                "layer-skipping (ρ=0.5)",
                "task=segmentation,variant=layer_skip,rho=0.5",
                (0.3778, 0.6731),
                6.29e10,
            ),
            Row(
                "layer-skipping (ρ=0.7)",
                "task=segmentation,variant=layer_skip,rho=0.7",
                (0.3984, 0.6900),
                8.27e10,
            ),
            Row(
                "layer-skipping (ρ=0.9)",
                "task=segmentation,variant=layer_skip,rho=0.9",
                (0.4127, 0.7001),
                8.95e10,
            ),
            Row("MP@Res5 (ρ=0.5)", "task=segmentation,variant=gated,rho=0.5", (0.4089, 0.6944), 6.29e10),
            Row("MP@Res5 (ρ=0.7)", "task=segmentation,variant=gated,rho=0.7", (0.4361, 0.7141), 8.27e10),
            Row("MP@Res5 (ρ=0.9)", "task=segmentation,variant=gated,rho=0.9", (0.4575, 0.7293), 8.95e10),
            Row("MP@Res5 (ρ=1.0)", "task=segmentation,variant=multipool", (0.4652, 0.7350), 9.63e10),
        ),
        note=(
            "a block of Res5 is a tenth of the MACs: of whole blocks, dropping one comes nearest to ρ=0.9 "
            "and to ρ=0.7, dropping two to ρ=0.5"
        ),
    ),
    _comparison(
        "Table 3",
        "segmentation",
        "nyuv2",
        "segmentation on NYUv2",
        SEGMENTATION,
        """
        42.1 71.1
        46.3 73.4
        46.5 73.5
        45.8 72.9
        43.6 71.4
        40.9 69.4
        """,
    ),
    _comparison(
        "Table 3",
        "segmentation",
        "stanford2d3d",
        "segmentation on Stanford 2D-3D-S",
        SEGMENTATION,
        """
        79.5 92.1
        83.7 93.6
        83.7 93.7
        82.8 93.3
        82.4 93.2
        81.8 92.9
        """,
    ),
    _comparison(
        "Table 3",
        "segmentation",
        "cityscapes",
        "segmentation on Cityscapes",
        ("miou", "iiou"),
        """
        73.8 54.7
        75.8 56.9
        75.7 55.8
        75.0 55.4
        72.6 55.1
        70.8 53.2
        """,
    ),
    _comparison(
        "Table 4",
        "depth",
        "nyuv2",
        "depth on NYUv2",
        DEPTH,
        """
        71.1 93.2 98.5
        74.5 94.4 98.8
        75.1 94.4 98.8
        74.5 94.4 98.8
        71.0 93.3 98.5
        67.3 91.0 97.7
        """,
        # The scores are those of table 6, whose networks are trained with L2 alone.
        base="task=depth,loss=l2",
    ),
    _comparison(
        "Table 4",
        "depth",
        "stanford2d3d",
        "depth on Stanford 2D-3D-S",
        DEPTH,
        """
        73.1 92.1 97.5
        77.5 94.1 97.9
        77.6 94.1 97.9
        77.3 93.9 97.8
        75.4 92.8 97.6
        72.7 91.3 97.1
        """,
    ),
    _comparison(
        "Table 4",
        "depth",
        "cityscapes",
        "depth on Cityscapes",
        DEPTH,
        """
        29.0 53.8 75.8
        33.7 65.9 76.9
        34.6 66.2 77.2
        34.5 65.7 76.9
        32.0 63.5 75.8
        28.7 58.7 71.6
        """,
    ),
    _comparison(
        "Table 5",
        "normals",
        "nyuv2",
        "normals on NYUv2",
        NORMALS,
        """
        22.3 34.4 62.5 74.4
        21.9 35.9 63.8 75.3
        21.7 36.1 64.2 75.5
        21.9 35.9 63.9 75.4
        22.5 34.7 62.5 74.1
        23.6 31.9 59.7 71.8
        """,
    ),
    _comparison(
        "Table 5",
        "normals",
        "stanford2d3d",
        "normals on Stanford 2D-3D-S",
        NORMALS,
        """
        19.0 51.5 68.6 76.3
        16.5 58.2 74.2 80.4
        16.5 58.3 74.2 80.4
        16.7 57.5 73.7 80.1
        17.0 56.5 73.1 79.7
        17.7 54.7 71.4 78.5
        """,
    ),
    _nyuv2(
        "Table 6",
        "depth",
        "depth on NYUv2: where to insert MultiPool (L2 alone, averages)",
        DEPTH,
        (
            Row("base", "task=depth,loss=l2", (0.711, 0.932, 0.985)),
            *_pooled(
                {
                    "Res3": (0.721, 0.935, 0.986),
                    "Res4": (0.726, 0.939, 0.986),
                    "Res5": (0.737, 0.939, 0.986),
                    "Res6": (0.725, 0.936, 0.985),
                    "Res3-4": (0.726, 0.938, 0.986),
                    "Res5-6": (0.726, 0.939, 0.985),
                },
                "task=depth,loss=l2,",
                "average",
            ),
        ),
    ),
    _nyuv2(
        "Table 7",
        "depth",
        "depth on NYUv2: losses (MultiPool at Res5)",
        DEPTH,
        (
            Row("L2 loss", "task=depth,loss=l2,variant=average", (0.737, 0.939, 0.986)),
            Row("L1 loss", "task=depth,loss=l1,variant=average", (0.743, 0.942, 0.987)),
            Row("L1+L2 loss", "task=depth,loss=both,variant=average", (0.745, 0.944, 0.988)),
            Row("L1+L2 loss (PAG)", "task=depth,loss=both,variant=multipool", (0.751, 0.944, 0.988)),
        ),
    ),
    _nyuv2(
        "Table 8",
        "normals",
        "normals on NYUv2: losses",
        NORMALS,
        (
            Row("cosine", "task=normals,loss=cosine", (23.3462, 0.3163, 0.5995, 0.7240)),
            Row("inverse cosine", "task=normals,loss=arccos", (23.1191, 0.3279, 0.6093, 0.7302)),
            Row("both", "task=normals,loss=both", (22.7170, 0.3382, 0.6195, 0.7383)),
        ),
    ),
    _nyuv2(
        "Table 9",
        "normals",
        "normals on NYUv2: where to insert MultiPool (averages)",
        NORMALS,
        (
            Row("base", "task=normals", (22.7170, 0.3382, 0.6195, 0.7383)),
            *_pooled(
                {
                    "Res3": (21.9951, 0.3560, 0.6362, 0.7514),
                    "Res4": (22.5506, 0.3366, 0.6188, 0.7386),
                    "Res5": (21.9556, 0.3567, 0.6374, 0.7526),
                    "Res6": (22.1661, 0.3514, 0.6323, 0.7482),
                    "Res3-4": (22.5183, 0.3375, 0.6198, 0.7392),
                    "Res3-5": (22.5051, 0.3389, 0.6209, 0.7394),
                },
                "task=normals,",
                "average",
            ),
        ),
    ),
    _nyuv2(
        "Table 10",
        "normals",
        "normals on NYUv2: one pooling size a pixel, or their average",
        NORMALS,
        (
            Row(
                "MP@Res3 (w-Avg.)",
                "task=normals,variant=average,multipool=res3_2",
                (21.9951, 0.3560, 0.6362, 0.7514),
            ),
            Row(
                "MP@Res3 (PAG)",
                "task=normals,variant=multipool,multipool=res3_2",
                (21.9793, 0.3591, 0.6396, 0.7523),
            ),
            Row("MP@Res5 (w-Avg.)", "task=normals,variant=average", (21.9556, 0.3567, 0.6374, 0.7526)),
            Row("MP@Res5 (PAG)", "task=normals,variant=multipool", (21.9226, 0.3587, 0.6384, 0.7532)),
        ),
    ),
)
"""Boundaries are scored on the 200 test images of BSDS500, the others on the test or validation set."""
