"""dynpix_jax: pixel labelling that spends computation where the image needs it.

Import the parts by name (`from dynpix_jax import ops, models`). This file holds the version only, so that
importing one floor never drags in another.
"""

__version__ = "0.1.0"
