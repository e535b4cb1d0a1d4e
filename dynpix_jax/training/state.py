"""The state that a training step reads and writes."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, Params, Variables


@flax.struct.dataclass
class TrainState:
    """State of training. It holds no random key: keys are folded from the seed, the stream's name and `step`.

    Attributes:
        step: int32 (), updates done since the beginning of the run, over all stages.
        params: The "params" collection, frozen leaves included.
        collections: All other collections by name (`batch_stats`); may be empty.
        opt_state: Optax state of the trainable leaves of the current stage.
    """

    step: Array
    params: Params
    collections: dict[str, Any]
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """{"params": ..., "batch_stats": ...}: what `System.apply` takes."""
        return {"params": self.params, **self.collections}


def new_state(variables: Variables, tx: Any, trainable: Any, step: int) -> TrainState:
    """State at the start of a stage: the given variables and a fresh optimizer."""
    # A copy: the step donates its state, and a caller's variables (a backbone shared by stages) must survive
    # that.
    collections = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), dict(variables))
    params = collections.pop("params")
    return TrainState(jnp.asarray(step, jnp.int32), params, collections, tx.init(trainable(params)))
