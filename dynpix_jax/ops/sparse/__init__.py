"""Sparse execution: a chain of layers that runs at the active positions of a mask only.

Call ``sparse_block(x, active, layers, combine=..., init=...)``, or ``perforated_conv`` for a single
convolution. Read the modules in this order:

1. Positions: ``active.py`` lists those of a mask (:class:`ActiveSet`); ``rows.py`` those of a mask that many
   layers share, as compact rows (:class:`ActiveRows`).
2. Arguments: ``layers.py`` has the layers of a chain as data; ``call.py`` checks and binds a call.
3. Implementations: ``chunks.py`` is the loop over chunks of rows; ``windows.py`` uses it to apply a function
   of windows. On them build ``masked.py`` (dense), ``gather.py`` (XLA), ``pallas_tpu*.py`` and
   ``pallas_gpu*.py`` (kernels; ``fusion.py`` has what they do beside the convolution). ``vjp.py`` gives a
   program the derivative of another.
4. Dispatch: ``api.py`` runs the named implementation, or chooses one by
   ``costs.py``. ``interpret.py`` lets tests run the
   kernels on any machine.

``reference.py`` is the definition that all are tested against.
"""

from dynpix_jax.ops.sparse.active import ActiveSet, active_set
from dynpix_jax.ops.sparse.api import (
    ImplementationUnavailable,
    implementations,
    perforated_conv,
    run_if_any,
    sparse_block,
)
from dynpix_jax.ops.sparse.costs import break_even, row_costs
from dynpix_jax.ops.sparse.interpret import interpreted
from dynpix_jax.ops.sparse.layers import (
    Affine,
    Convolution,
    Depthwise,
    Interpolation,
    Layer,
    Relu,
    ResidualBlock,
    Shortcut,
)
from dynpix_jax.ops.sparse.reference import perforated_conv_reference, sparse_block_reference
from dynpix_jax.ops.sparse.rows import ActiveRows, active_rows, interpolate_rows

__all__ = [
    "ActiveRows",
    "ActiveSet",
    "Affine",
    "Convolution",
    "Depthwise",
    "ImplementationUnavailable",
    "Interpolation",
    "Layer",
    "Relu",
    "ResidualBlock",
    "Shortcut",
    "active_rows",
    "active_set",
    "break_even",
    "implementations",
    "interpolate_rows",
    "interpreted",
    "perforated_conv",
    "perforated_conv_reference",
    "row_costs",
    "run_if_any",
    "sparse_block",
    "sparse_block_reference",
]
