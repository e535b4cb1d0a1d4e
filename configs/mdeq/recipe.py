"""Shared by the configs of this folder: the three sizes of MDEQ, and training in two stages.

First a few applications of f are unrolled and trained like any network ("pretraining"), which brings f near
enough to a contraction for solvers; then the fixed point itself ("equilibrium").

Arguments of all configs:
  variant      small | xl (the anytime paper's, its table 3) | tiny (three branches, for a CPU)
  solver       broyden | anderson
  iterations   of the forward search, at most; 0: what the variant was published with
  read_out     iterations after which predictions are made on the way, joined by "+"
  jacobian     weight of the penalty on f's Jacobian, 0 as in the Cityscapes runs

small and xl train as released, but for this: the search for a gradient stops at a relative error of 1e-4,
not at an absolute one of 2e-10, and momentum begins anew with the second stage. A forward search has 27
iterations for small and 26 for XL, as released (the paper says 26 and 27). tiny is ours: AdamW, a rate that
falls as a polynomial in each stage, searches image by image, z* decoded (the wing's README.md: Departures).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from dynpix_jax.core.configs import check_choices, parse_arg
from dynpix_jax.core.errors import UserError

from ..budgets import COMPUTE_DTYPE

SOLVERS = ("broyden", "anderson")
BUDGETS = ("cpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One size.

    Attributes:
        cell: Values of ``model.cell`` that differ from small's.
        forward: Iterations of the search for the fixed point.
        backward: Iterations of the search for the gradient.
    """

    cell: dict[str, Any]
    forward: int
    backward: int


VARIANTS = {
    "small": Variant({}, 27, 30),
    "xl": Variant(dict(channels=(88, 176, 352, 704), expansion=6, dropout=0.04), 26, 26),
    "tiny": Variant(dict(channels=(24, 48, 96), expansion=2, dropout=0.0), 8, 8),
}


@dataclasses.dataclass(frozen=True)
class Steps:
    """Batch and length of the stages."""

    batch_size: int
    pretraining: int
    equilibrium: int


def read_args(
    arg: str | None, *, variant: str, root: str, split: str, **more: Any
) -> ml_collections.ConfigDict:
    """The string argument of a config; ``more`` are names and defaults of its own.

    Raises:
        UserError: An unknown name or value.
    """
    args = parse_arg(
        arg,
        variant=variant,
        solver="broyden",
        iterations=0,
        read_out=(1, 2, 4) if variant == "tiny" else (4, 6, 8, 10),
        jacobian=0.0,
        budget="cpu",
        root=root,
        packed=False,
        weights="",
        continue_from="",
        split=split,
        **more,
    )
    check_choices(args, {"variant": tuple(VARIANTS), "solver": SOLVERS, "budget": BUDGETS})
    if args.continue_from and args.weights:
        raise UserError("config argument weights: continue_from gives the weights that training begins with")
    for name, least in (("iterations", 0), ("jacobian", 0)):
        if args[name] < least:
            raise UserError(f"config argument {name}={args[name]}: expected a number >= {least}")
    return args


def mdeq_config(
    args: ml_collections.ConfigDict,
    dataset: str,
    *,
    task_options: dict[str, Any],
    steps: Steps,
    scale: float = 1.0,
) -> ml_collections.ConfigDict:
    """All sections but ``data``.

    Args:
        dataset: For the config's name.
        task_options: Options of segmentation.
        scale: Size at which the network sees an image in evaluation, relative to the image's own.
    """
    variant, tiny = VARIANTS[args.variant], args.variant == "tiny"
    forward = args.iterations or variant.forward
    stops = "image" if tiny else "batch"
    config = ml_collections.ConfigDict()
    config.name = f"mdeq_{dataset}_{args.variant}"
    config.model = dict(
        system="mdeq",
        compute_dtype=COMPUTE_DTYPE[args.budget],
        task="segmentation",
        task_options=task_options,
        cell=variant.cell,
        forward=dict(
            method=args.solver,
            iterations=forward,
            tolerance=1e-3 if tiny else 1e-5,
            stops=stops,
            **_memory(args.solver, forward),
        ),
        # Relative: a gradient is as small as the loss and the number of pixels make it.
        backward=dict(
            method=args.solver,
            iterations=variant.backward,
            tolerance=1e-2 if tiny else 1e-4,
            error="relative",
            stops=stops,
            **_memory(args.solver, variant.backward),
        ),
        implicit=dict() if tiny else dict(gives="applied", start="zero"),
        jacobian=dict(weight=args.jacobian),
        anytime=dict(iterations=tuple(args.read_out)),
        norm_momentum=0.9 if tiny else 0.99,
    )
    config.training = dict(
        batch_size=steps.batch_size,
        stages=_stages(args, steps),
        optimizer="adamw" if tiny else "sgd",
        weight_decay=dict(tiny=1e-4, small=2e-4, xl=3e-4)[args.variant],
        weight_decay_on=(r".*/(kernel|gain)",) if tiny else (r".*",),
        schedule="poly" if tiny else "cosine",
        warmup_steps=20 if tiny else 0,
        grad_clip=1.0 if tiny else 0.0,
        log_every=25,
        init_from=args.continue_from or args.weights,
        workers=0 if args.budget == "cpu" else 8,
    )
    config.evaluation = dict(
        mode="dense",
        also=tuple(f"iterations_{n}" for n in (*(n for n in args.read_out if n < forward), forward)),
        pictures=4,
        inference=dict(scales=(scale,)),
    )
    return config


def _memory(solver: str, iterations: int) -> dict[str, Any]:
    """Broyden as released: a term an iteration, at most 27. Anderson mixes six iterates."""
    if solver == "anderson":
        return dict(memory=6)
    return dict(memory=27, forgets="after") if iterations > 27 else dict(memory=iterations)


def _stages(args: ml_collections.ConfigDict, steps: Steps) -> tuple[dict, ...]:
    """Pretraining, then equilibrium; with ``continue_from`` only the second."""
    tiny = args.variant == "tiny"
    rate = 1e-3 if tiny else 1e-2
    applications = 3
    pretraining = dict(
        name="pretraining",
        steps=steps.pretraining,
        learning_rate=rate,
        # The penalty is on the Jacobian at a fixed point, and there is none yet.
        model=dict(unrolled=applications, jacobian=dict(weight=0.0)),
    )
    equilibrium = dict(
        pretraining,
        name="equilibrium",
        steps=steps.equilibrium,
        model=dict(),
        learning_rate=0.5 * rate if tiny else rate,
    )
    return (equilibrium,) if args.continue_from else (pretraining, equilibrium)
