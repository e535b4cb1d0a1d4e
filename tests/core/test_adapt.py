"""What weights of another model give: names, renames, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dynpix_jax.core.adapt import TakeOver, take_over
from dynpix_jax.core.errors import UserError


def variables(**layers: dict[str, float]) -> dict:
    """Variables whose backbone has these layers: each leaf is one number."""
    return {
        "params": {"backbone": {n: {k: np.array([v]) for k, v in tree.items()} for n, tree in layers.items()}}
    }


RULES = TakeOver(
    "net", frozenset({"res2_1", "res2_2"}), lambda path: [path.replace("extra", "conv")], ".*/gate"
)
FRESH = variables(res2_1=dict(conv=0, extra=0), res2_2=dict(conv=0, gate=7))


def test_a_bare_backbone_and_a_whole_model_give_the_same():
    given = variables(res2_1=dict(conv=1), res2_2=dict(conv=2))
    for source in (given, {"params": given["params"]["backbone"]}):
        adapted = take_over(source, FRESH, RULES)["params"]["backbone"]
        # What is renamed starts from its other name; a leaf of its own name comes first.
        assert [float(adapted["res2_1"][name][0]) for name in ("conv", "extra")] == [1, 1]
        assert [float(adapted["res2_2"][name][0]) for name in ("conv", "gate")] == [2, 7]
    given["params"]["backbone"]["res2_1"]["extra"] = np.array([5])
    assert take_over(given, FRESH, RULES)["params"]["backbone"]["res2_1"]["extra"][0] == 5


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (dict(res2_1=dict(conv=1)), "no res2_2/conv among their params for this net"),
        (
            dict(res2_1=dict(conv=1), res2_2=dict(conv=1), res2_3=dict(conv=1)),
            "they hold res2_3, this net has no",
        ),
        (dict(fc=dict(kernel=1)), "no name matches"),
    ],
)
def test_another_architecture_is_refused(layers, message):
    with pytest.raises(UserError, match=message):
        take_over(variables(**layers), FRESH, RULES)


def test_what_is_like_no_block_is_ignored():
    given = variables(res2_1=dict(conv=1), res2_2=dict(conv=2), fc3_1000=dict(kernel=3))
    assert set(take_over(given, FRESH, RULES)["params"]["backbone"]) == {"res2_1", "res2_2"}
