"""Perforated convolution: a convolution that runs at the active positions of a mask only.

``reference.py`` defines it; ``masked.py``, ``gather.py`` and ``tiles.py`` run it on every backend,
``pallas_tpu.py`` and ``pallas_gpu.py`` are kernels for one; ``vjp.py`` gives them their derivative;
``api.py`` chooses and checks.
"""

from dynpix_jax.ops.sparse.api import (
    ImplementationUnavailable,
    break_even,
    default_implementation,
    implementations,
    perforated_conv,
)
from dynpix_jax.ops.sparse.reference import perforated_conv_reference

__all__ = [
    "ImplementationUnavailable",
    "break_even",
    "default_implementation",
    "implementations",
    "perforated_conv",
    "perforated_conv_reference",
]
