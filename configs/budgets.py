"""What follows from the argument ``budget`` in the configs of all papers."""

COMPUTE_DTYPE = {"cpu": "float32", "gpu": "bfloat16"}
"""Budget -> ``model.compute_dtype``: accelerators multiply bfloat16 faster, and move half the bytes."""
