from __future__ import annotations

import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import map_named, match_first, named_leaves

TREE = {"stem": {"kernel": 1}, "head": {"bias": 2, "layers": [3, 4]}}


def test_named_leaves_in_jax_order():
    assert named_leaves(TREE) == [
        ("head/bias", 2),
        ("head/layers/0", 3),
        ("head/layers/1", 4),
        ("stem/kernel", 1),
    ]


def test_map_named_keeps_the_structure():
    mapped = map_named(lambda path, leaf: f"{path}={leaf}", TREE)
    assert mapped == {
        "stem": {"kernel": "stem/kernel=1"},
        "head": {"bias": "head/bias=2", "layers": ["head/layers/0=3", "head/layers/1=4"]},
    }


def test_match_first_matches_the_whole_path_in_order():
    rules = [("head/bias", "bias"), ("head/.*", "head"), ("ste", "part")]
    assert match_first(rules, "head/bias") == "bias"
    assert match_first(rules, "head/layers/0") == "head"
    assert match_first(rules, "stem", default=None) is None
    with pytest.raises(UserError, match=r"no rule matches 'stem'; rules: 'head/bias', 'head/\.\*', 'ste'"):
        match_first(rules, "stem")


def test_malformed_regex_is_the_users_mistake():
    with pytest.raises(UserError, match=r"rule '\(' is not a regular expression"):
        match_first([("(", 1)], "a")
