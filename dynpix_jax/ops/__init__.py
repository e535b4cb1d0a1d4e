"""Floor 1: pure functions on arrays (Gumbel sampling, gating, active sets, perforated convolution, resizing)."""
