"""dynpix_jax: pixel labelling that spends computation where the image needs it.

Import the parts by name (`from dynpix_jax import ops, nn`), open a trained network with `dynpix_jax.load`.
This file holds no more than that, so that importing one level never drags in another.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynpix_jax.serving.predictor import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dynpix_jax.serving.predictor import load

    return load
