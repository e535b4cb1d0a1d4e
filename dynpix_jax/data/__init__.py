"""Floor 4: data sources, joint geometry, loader and synthetic scenes. NumPy arrays only, no jax."""
