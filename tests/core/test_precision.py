"""Rules on modules by path: which dtype their maps get."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.precision import Policy, widen
from dynpix_jax.core.statistics import norm_groups, norms_over


class Told(nn.Module):
    """Keeps the dtypes of its arguments."""

    @nn.compact
    def __call__(self, *values, **named):
        self.sow("told", "dtypes", tuple(value.dtype.name for value in (*values, *named.values())))
        return values[0]


class Network(nn.Module):
    """Two modules, one of them within another."""

    def setup(self):
        self.stem, self.block, self.gate = Told(), Inner(), Told()

    def __call__(self, x):
        y = self.block(self.stem(x, x[..., 0], x.astype(jnp.int32)))
        return self.gate(y, before=y)


class Inner(nn.Module):
    def setup(self):
        self.conv, self.last = Told(), Told()

    def __call__(self, x):
        return self.last(self.conv({"a": x}["a"]))


X = jnp.ones((1, 2, 2, 1))


def told(policy: Policy, root: str = "") -> dict[str, tuple[str, ...]]:
    with policy.in_force(root):
        _, found = Network().apply({}, X, mutable=["told"])
    found = found["told"]
    return {
        "stem": found["stem"]["dtypes"][0],
        "conv": found["block"]["conv"]["dtypes"][0],
        "last": found["block"]["last"]["dtypes"][0],
        "gate": found["gate"]["dtypes"][0],
    }


@pytest.mark.parametrize("policy", [Policy(), Policy("float32"), Policy((("stem", "float32"),))])
def test_plain_is_float32(policy):
    assert policy.plain
    assert told(policy)["last"] == ("float32",)


def test_maps_alone_are_cast():
    """Not masks (B, H, W), nor whole numbers."""
    assert told(Policy("bfloat16"))["stem"] == ("bfloat16", "float32", "int32")


def test_what_a_system_keeps_comes_before_the_rules():
    found = told(Policy("bfloat16", ("gate",)))
    assert found["gate"] == ("float32", "float32")
    assert found["last"] == ("bfloat16",)


def test_the_first_rule_that_matches_counts_for_all_within():
    found = told(Policy((("block/conv", "bfloat16"), ("block", "float32"), (".*", "bfloat16"))))
    assert (found["conv"], found["last"]) == (("bfloat16",), ("float32",))
    assert found["stem"][0] == "bfloat16"
    # What no rule matches is float32.
    assert told(Policy((("block", "bfloat16"),)))["gate"][0] == "float32"


def test_a_module_that_is_applied_by_itself_has_its_path():
    policy = Policy((("cell/block", "bfloat16"),))
    assert told(policy)["conv"] == ("float32",)
    assert told(policy, "cell")["conv"] == ("bfloat16",)


def test_rules_without_a_module_are_refused():
    params = {"stem": {"kernel": X}, "block": {"conv": {"kernel": X}}}
    Policy((("block", "bfloat16"), ("st.*", "bfloat16"))).check(params)
    with pytest.raises(UserError, match=r"config.model.compute_dtype: 'bloc' matches no module"):
        Policy((("bloc", "bfloat16"),)).check(params)
    Policy((("stem|block", "bfloat16"),)).check(params, following=("stem",))
    with pytest.raises(UserError, match=r"'st.*' has no effect: 'stem' computes in the dtype of the maps"):
        Policy((("st.*", "bfloat16"),)).check(params, following=("stem",))
    with pytest.raises(UserError, match=r"compute_dtype: '\(' is not a regular expression"):
        Policy((("(", "bfloat16"),))


def test_widen():
    wide = widen({"a": X.astype(jnp.bfloat16), "b": X > 0, "c": None})
    assert (wide["a"].dtype, wide["b"].dtype, wide["c"]) == (jnp.float32, jnp.bool_, None)


def test_groups_of_norms():
    assert norm_groups(6) == 1
    with norms_over("host"):
        assert norm_groups(6) == 1
    with norms_over(2):
        assert norm_groups(6) == 3
    for size in (4, 8):
        with norms_over(size), pytest.raises(UserError, match=f"groups of {size} images do not divide .* 6"):
            norm_groups(6)
    assert norm_groups(6) == 1
