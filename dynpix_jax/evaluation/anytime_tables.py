"""Tables of the anytime paper (Liu, Darrell and Shelhamer, ICLR 2022) and of its released code's readme.

Rows of MDEQ, the paper's baseline: ``dynpix tables mdeq``.
"""

from __future__ import annotations

from dynpix_jax.evaluation.paper_tables import Row, Table

Exits = tuple[tuple[float | None, float | None], ...]
"""(Score in percent, GFLOPs) at exits 1 to 4, then their means; None where nothing is printed."""


def _rows(network: str, argument: str, exits: Exits) -> tuple[Row, ...]:
    """A row an exit, the last one being the network itself, and one of the means."""
    names = (*(f"exit_{number}" for number in range(1, len(exits) - 1)), "", "exit_mean")
    labels = (*(f"exit {number}" for number in range(1, len(exits))), "mean of exits")
    return tuple(
        Row(
            f"{network}, {label}",
            argument,
            (None if score is None else round(score / 100, 4),),
            macs=None if gflops is None else gflops * 2**30,
            alternative=name,
        )
        for label, name, (score, gflops) in zip(labels, names, exits, strict=True)
    )


_NOTE = (
    "The paper's GFLOPs are MACs / 2**30, of convolutions only, at exit n with all exits before it; with CA "
    "the mean over the images of val. eval.py scores every exit of a run"
)

TABLES = (
    Table(
        number="Table 1",
        title="Segmentation of Cityscapes with four exits, HRNet-W48",
        config="configs/anytime/cityscapes.py",
        source="cityscapes",
        task="segmentation",
        metrics=("miou",),
        rows=(
            Row("HRNet-W48", "variant=hrnet", (0.807,), macs=696.2 * 2**30),
            *_rows(
                "EE",
                "variant=ee",
                ((34.3, 48.4), (59.0, 113.4), (76.9, 388.9), (80.4, 722.2), (62.7, 318.2)),
            ),
            *_rows(
                "EE + RH",
                "variant=rh",
                ((44.6, 41.9), (60.2, 105.6), (76.6, 368.0), (79.9, 701.3), (65.3, 304.2)),
            ),
            *_rows(
                "EE + RH + CA",
                "variant=ca",
                ((44.3, 41.9), (60.1, 93.9), (76.8, 259.3), (81.3, 387.1), (65.7, 195.6)),
            ),
        ),
        note=_NOTE,
        gibi=True,
    ),
    Table(
        number="Figure 3",
        title="Segmentation of Cityscapes, HRNet-W18-Small-v2 (scores of the released code's readme)",
        config="configs/anytime/cityscapes.py",
        source="cityscapes",
        task="segmentation",
        metrics=("miou",),
        rows=(
            Row("HRNet-W18-Small-v2", "variant=hrnet,arch=w18s2", (0.762,), macs=71.6 * 2**30),
            *_rows(
                "EE + RH + CA",
                "variant=ca,arch=w18s2",
                ((40.83, None), (48.19, None), (68.26, None), (77.02, None), (58.57, None)),
            ),
        ),
        note="HRNet's score is that of its own readme. The figure has curves only",
        gibi=True,
    ),
    Table(
        number="Table 2",
        title="Pose on MPII with four exits, HRNet-W32",
        config="configs/anytime/mpii.py",
        source="mpii",
        task="pose",
        metrics=("pckh",),
        rows=(
            Row("HRNet-W32", "variant=hrnet", (0.9033,), macs=9.49 * 2**30),
            *_rows("EE", "variant=ee", ((None, None),) * 3 + ((90.31, 9.51), (74.60, 4.73))),
            *_rows("EE + RH", "variant=rh", ((None, None),) * 3 + ((90.26, 9.55), (79.16, 4.76))),
            *_rows("EE + RH + CA", "variant=ca", ((None, None),) * 3 + ((90.20, 3.88), (79.04, 2.44))),
        ),
        note=(
            f"{_NOTE}. These GFLOPs are those of one view; scores, and these configs, take the mean with the "
            "mirror image, so MACs here are twice as many (flip=False: one view)"
        ),
        gibi=True,
    ),
)
