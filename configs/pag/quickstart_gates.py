"""The quickstart's gates with one thing changed: what makes learned masks better than chance?

    python train.py --config=configs/pag/quickstart_gates.py:gates=no_res2 --workdir=runs/no_res2
    python eval.py --config=configs/pag/quickstart_gates.py:gates=no_res2 --workdir=runs/no_res2

Arguments: gates = base, the training without gates that the others begin with; none, as many more steps
without them; quickstart, its own gates; longer, the same after gates=none; or one of CHANGES, below. later =
how many times the quickstart's steps the stages after the base take. continue_from = the workdir of
gates=base (of none, for longer), so that only what follows is trained. `dynpix reproduce pag
quickstart_gates` has a row for each. Measured here: docs/results.md.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from dynpix_jax.configs import quickstart
from dynpix_jax.core.configs import one_of, parse_arg
from dynpix_jax.core.errors import UserError

NO_RES2 = dict(stages=("res3", "res4"))
GUIDED = dict(guidance=0.01)
CENTRED = dict(options=dict(init_std=0.02, open_bias=2.0, centred=True))

CHANGES: dict[str, dict[str, Any]] = {
    "no_res2": NO_RES2,
    "conv3x3": dict(scope="conv3x3"),
    "centred": CENTRED,
    "blurred": dict(options=dict(init_std=0.02, open_bias=2.0, blur=True)),
    "soft": dict(soft=True),
    "sampled": dict(noise=(1.0, 1.0)),
    "cold": dict(temperature=(0.5, 0.1)),
    "combined": dict(sparsity="combined", calibrate="mean"),
    "at_once": dict(insert=False),
    "weight_x5": dict(weight=0.1),
    "guided": GUIDED,
    "guided_held": GUIDED | dict(weight=0.1),
    "no_res2_guided": NO_RES2 | GUIDED,
    "no_res2_centred": NO_RES2 | CENTRED,
    "together": NO_RES2 | CENTRED | GUIDED,
}
"""Name -> values of ``gate`` in both stages: where gates are (no_res2) and what they skip (conv3x3, the other
reading of eq. 2); what they read (centred, blurred over 3x3 positions); relaxed masks in training (soft),
masks that are samples to the end (sampled), colder ones; one budget for all gates together (combined), all
gates from the first step on (at_once), a heavier loss of the budget (weight_x5); a loss that asks them to
compute at boundaries (guided), beside such a heavier one (guided_held); and some of them together.
"""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of one change."""
    names = ("quickstart", "base", "none", "longer", *CHANGES)
    args = parse_arg(arg, gates=one_of(*names), later=1, continue_from="")
    if args.later < 1:
        raise UserError(f"config argument later={args.later}: expected at least 1")
    if args.later > 1 and args.gates == "base":
        raise UserError(f"config argument later={args.later}: nothing follows the base of gates=base")
    if args.continue_from and args.gates == "base":
        raise UserError("config argument continue_from: gates=base is what the others continue from")
    ungated = args.gates in ("base", "none")
    config = quickstart.get_config("variant=base" if ungated else "variant=gated")
    config.name = f"quickstart_gates_{args.gates}"
    base, *later = config.training.stages
    before = [base]
    if args.gates == "longer":
        before = list(quickstart.get_config("variant=base").training.stages)
    elif args.gates == "base":
        later = []
    elif not ungated:
        later = [_changed(stage, CHANGES.get(args.gates, {})) for stage in later]
    later = [dict(stage, steps=args.later * stage["steps"]) for stage in later]
    config.training.stages = tuple(later if args.continue_from else [*before, *later])
    config.training.init_from = args.continue_from
    config.evaluation.every_stage = False
    return config


def _changed(stage: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return dict(stage, model=dict(gate=dict(stage["model"]["gate"], **changes)))
