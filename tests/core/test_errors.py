from __future__ import annotations

from dynpix_jax.core.errors import UserError, suggest


def test_message_is_one_line():
    assert str(UserError("a\n  b\tc ")) == "a b c"


def test_suggest_names_the_nearest_and_lists_all():
    assert suggest("learnig_rate", ["momentum", "learning_rate"]) == (
        "did you mean 'learning_rate'? valid: learning_rate, momentum"
    )
    assert suggest("RHO", ["rho"]) == "did you mean 'rho'? valid: rho"
    assert suggest("zzz", ["b", "a"]) == "valid: a, b"
    assert suggest("zzz", []) == "no names are valid here"
