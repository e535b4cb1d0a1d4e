"""The configs, as modules: in a clone they stand at its top, in an installed package in this folder.

So a config that was copied to anywhere still finds what it imports.
"""

from dynpix_jax.core.configs import shipped_configs

__path__ = [str(shipped_configs())]
