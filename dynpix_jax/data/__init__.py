"""Data: sources, joint geometry, the grain loader, synthetic scenes. Numpy only; no jax arrays."""
