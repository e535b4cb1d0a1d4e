"""Level 2: Flax Linen layers that several systems share."""
