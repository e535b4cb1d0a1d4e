"""Level 4: reading pretrained weights of other libraries and fitting them to our parameter names."""

from dynpix_jax.weights.convention import check_header
from dynpix_jax.weights.importer import ARCHITECTURES, NETWORKS, ImportReport, import_network, import_weights
from dynpix_jax.weights.precision import PRECISIONS, Precision
from dynpix_jax.weights.readers import read_tensors
from dynpix_jax.weights.weights_file import check_complete, read_weights, write_weights

__all__ = [
    "ARCHITECTURES",
    "NETWORKS",
    "PRECISIONS",
    "ImportReport",
    "Precision",
    "check_complete",
    "check_header",
    "import_network",
    "import_weights",
    "read_tensors",
    "read_weights",
    "write_weights",
]
