"""Floor 4: reading pretrained weights of other libraries and fitting them to our parameter names."""

from dynpix_jax.weights.importer import ARCHITECTURES, ImportReport, import_weights
from dynpix_jax.weights.readers import read_tensors
from dynpix_jax.weights.weights_file import read_weights, write_weights

__all__ = ["ARCHITECTURES", "ImportReport", "import_weights", "read_tensors", "read_weights", "write_weights"]
