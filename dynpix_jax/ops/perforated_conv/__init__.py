"""Perforated convolution: a convolution that runs at the active positions of a mask only.

``reference.py`` defines it, ``masked.py`` and ``gather.py`` run it on every backend, ``api.py`` chooses and
checks, ``arg_specs.py`` lists the papers' shapes.
"""

from dynpix_jax.ops.perforated_conv.api import (
    ImplementationUnavailable,
    default_implementation,
    implementations,
    perforated_conv,
)
from dynpix_jax.ops.perforated_conv.reference import perforated_conv_reference

__all__ = [
    "ImplementationUnavailable",
    "default_implementation",
    "implementations",
    "perforated_conv",
    "perforated_conv_reference",
]
