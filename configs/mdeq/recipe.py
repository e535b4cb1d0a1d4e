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
falls as a polynomial in each stage, searches image by image, z* decoded (papers/mdeq/README.md: Departures).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from dynpix_jax.configs import training
from dynpix_jax.core.configs import check_least, one_of, parse_arg
from dynpix_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Variant:
    """One size, and how it is trained.

    Attributes:
        cell: Values of ``model.cell`` that differ from small's.
        forward: Iterations and tolerance of the search for the fixed point.
        backward: Those of the search for the gradient. The tolerance is relative: a gradient is as small as
            the loss and the number of pixels make it.
        rates: Learning rates of the stages.
        training: Values of ``training``.
        model: Values of ``model``.
        stops: Of both searches.
    """

    cell: dict[str, Any]
    forward: tuple[int, float]
    backward: tuple[int, float]
    rates: tuple[float, float]
    training: dict[str, Any]
    model: dict[str, Any]
    stops: str


def _released(cell: dict[str, Any], forward: int, backward: int, weight_decay: float) -> Variant:
    sgd = dict(training.SGD, weight_decay=weight_decay, weight_decay_on=(r".*",), schedule="cosine")
    model = dict(implicit=dict(gives="applied", start="zero"), norm_momentum=0.99)
    return Variant(cell, (forward, 1e-5), (backward, 1e-4), (1e-2, 1e-2), sgd, model, "batch")


VARIANTS = {
    "small": _released({}, 27, 30, 2e-4),
    "xl": _released(dict(channels=(88, 176, 352, 704), expansion=6, dropout=0.04), 26, 26, 3e-4),
    "tiny": Variant(
        dict(channels=(24, 48, 96), expansion=2, dropout=0.0),
        (8, 1e-3),
        (8, 1e-2),
        (1e-3, 5e-4),
        dict(weight_decay_on=(r".*/(kernel|gain)",), warmup_steps=20, grad_clip=1.0),
        dict(norm_momentum=0.9),
        "image",
    ),
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
        variant=one_of(*VARIANTS, default=variant),
        solver=one_of("broyden", "anderson"),
        iterations=0,
        read_out=(1, 2, 4) if variant == "tiny" else (4, 6, 8, 10),
        jacobian=0.0,
        budget=training.BUDGET,
        root=root,
        packed=False,
        weights="",
        continue_from="",
        split=split,
        **more,
    )
    if args.continue_from and args.weights:
        raise UserError("config argument weights: continue_from gives the weights that training begins with")
    check_least(args, {"iterations": 0, "jacobian": 0})
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
    variant = VARIANTS[args.variant]
    iterations, tolerance = variant.forward
    forward = args.iterations or iterations
    config = ml_collections.ConfigDict()
    config.name = f"mdeq_{dataset}_{args.variant}"
    config.model = dict(
        system="mdeq",
        compute_dtype=training.COMPUTE_DTYPE[args.budget],
        task="segmentation",
        task_options=task_options,
        cell=variant.cell,
        forward=_search(args, variant, forward, tolerance),
        backward=_search(args, variant, *variant.backward) | dict(error="relative"),
        jacobian=dict(weight=args.jacobian),
        anytime=dict(iterations=tuple(args.read_out)),
        **variant.model,
    )
    config.training = training.section(
        args, steps.batch_size, _stages(args, steps, variant.rates), log_every=25, **variant.training
    )
    config.evaluation = dict(
        mode="dense",
        also=tuple(f"iterations_{n}" for n in (*(n for n in args.read_out if n < forward), forward)),
        pictures=4,
        inference=dict(scales=(scale,)),
    )
    return config


def _search(
    args: ml_collections.ConfigDict, variant: Variant, iterations: int, tolerance: float
) -> dict[str, Any]:
    """Broyden has a term an iteration, as released at most 27. Anderson mixes six iterates."""
    memory = dict(memory=6) if args.solver == "anderson" else dict(memory=min(iterations, 27))
    if args.solver == "broyden" and iterations > 27:
        memory["forgets"] = "after"
    common = dict(method=args.solver, stops=variant.stops, **memory)
    return dict(common, iterations=iterations, tolerance=tolerance)


def _stages(
    args: ml_collections.ConfigDict, steps: Steps, rates: tuple[float, float]
) -> tuple[dict[str, Any], ...]:
    """Pretraining, then equilibrium; with ``continue_from`` only the second."""
    pretraining = dict(
        name="pretraining",
        steps=steps.pretraining,
        learning_rate=rates[0],
        # The penalty is on the Jacobian at a fixed point, and there is none yet.
        model=dict(unrolled=3, jacobian=dict(weight=0.0)),
    )
    equilibrium = dict(name="equilibrium", steps=steps.equilibrium, learning_rate=rates[1], model={})
    return (equilibrium,) if args.continue_from else (pretraining, equilibrium)
