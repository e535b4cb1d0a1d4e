"""Names for the arrays and trees that cross module borders: aliases, not checked at run time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
"""Any jax array, concrete or traced."""

Mask: TypeAlias = jax.Array
"""(B, H, W) bool, True = compute."""

PRNGKey: TypeAlias = jax.Array
"""A typed key of `jax.random.key`, shape ()."""

Params: TypeAlias = Mapping[str, Any]
"""Nested dict of trainable arrays: the `params` collection of a Flax module."""

Variables: TypeAlias = Mapping[str, Any]
"""Flax variables: {"params": Params, "batch_stats": ...}."""
