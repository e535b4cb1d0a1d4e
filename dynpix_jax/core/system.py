"""The base of systems: a paper's network with its losses, pure functions of arrays, parameters, keys.

Optional abilities (gates, turns, choices, further inputs) are the protocols of `core.capabilities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.core.adapt import TakeOver, take_over
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.precision import ComputeDtype, Policy, widen
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.statistics import NormGroup, norms_over
from dynpix_jax.core.task import Task
from dynpix_jax.core.typing import Array, PRNGKey, Variables

Inputs = Mapping[str, Any]
"""What comes beside a batch of images, by name: arrays (B, H, W)."""

ANY_BATCH: Inputs = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)}
"""Stands for any batch in `System.init`: no parameter depends on the size of the images."""


@flax.struct.dataclass
class Outputs:
    """Results of a forward pass.

    Attributes:
        predictions: Task -> logits (B, H, W, C) at the images' resolution.
        gates: Gate -> float mask (B, h, w), 1 where the gated layer computed; straight-through gradients.
        selections: Module whose pixels choose -> (B, h, w, P), the weight of every choice.
        exits: Earlier predictions, in the order in which the network makes them (side outputs, exits, loops).
        updates: New values of the mutable collections (``batch_stats``); empty unless training updates them.
        probabilities: Gate -> its probability of computing, in [0, 1], in training and where masks replace
            its decision. Empty otherwise.
        measures: Further numbers of each image, (B,) float by name, such as a solver's iterations.
    """

    predictions: dict[str, Array]
    gates: dict[str, Array] = flax.struct.field(default_factory=dict)
    selections: dict[str, Array] = flax.struct.field(default_factory=dict)
    exits: tuple[dict[str, Array], ...] = ()
    updates: dict[str, Any] = flax.struct.field(default_factory=dict)
    probabilities: dict[str, Array] = flax.struct.field(default_factory=dict)
    measures: dict[str, Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class LossAux:
    """Results of a loss beside its value.

    Attributes:
        terms: Named parts of the loss (scalars, already weighted), and what else a step reports.
        updates: New ``batch_stats``.
    """

    terms: dict[str, Array]
    updates: dict[str, Any]


class SystemClass(Protocol):
    """A class of systems as a table has it; it is built from an object of its ``Config``."""

    Config: type[Any]

    def __call__(self, config: Any, /) -> System: ...


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Keys that the ``model`` section of every system has.

    Attributes:
        compute_dtype: ``float32`` or ``bfloat16``, or rules ((regex, dtype), ...) on modules by their paths,
            of which the first that matches counts; see `core.precision.Policy`.
        norm_group: Over which images batch norms take their moments in training: ``global`` (all of the
            batch), ``host`` (each host's; of a microbatch, its images there), or a number of consecutive
            images.
    """

    compute_dtype: ComputeDtype = "float32"
    norm_group: NormGroup = "global"

    def __post_init__(self) -> None:
        if isinstance(self.norm_group, int) and self.norm_group < 1:
            raise ValueError(f"norm_group: {self.norm_group}; expected at least 1")


class System(ABC):
    """Base of the systems. Immutable; all state is in ``variables`` = {"params": ..., "batch_stats": ...}.

    It is made from one argument, an object of its ``Config``, and stores it as ``config``.

    Attributes:
        name: Name for messages.
        Config: Class of its typed settings; takes the keys of a config's ``model`` section.
        counts_resizing: Whether bilinear resizing, a product of matrices, is among its MACs; in the papers of
            the HRNet family it is not.
        float32: Regexes of modules that compute in float32 whatever ``compute_dtype`` says: those that make
            logits of gates.
        following: Regexes of modules that compute in the dtype of what they read.
        tasks: What it predicts, by name, in the order of its outputs.
        network: The Flax module.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    counts_resizing: ClassVar[bool] = True
    float32: ClassVar[tuple[str, ...]] = ()
    following: ClassVar[tuple[str, ...]] = ()
    tasks: Mapping[str, Task]
    network: nn.Module

    def init(self, key: PRNGKey, batch: Mapping[str, Any]) -> Variables:
        """Fresh variables; ``batch["image"]`` (B, H, W, 3) gives the shape only."""
        images = jnp.zeros(batch["image"].shape, jnp.float32)
        params, gumbel = jax.random.split(key)
        variables = self.network.init({"params": params, "gumbel": gumbel}, images)
        return dict(variables)

    @cached_property
    def variable_shapes(self) -> Variables:
        """Shapes and dtypes of its variables; nothing is executed."""
        shapes: Variables = jax.eval_shape(lambda seed: self.init(jax.random.key(seed), ANY_BATCH), 0)
        return shapes

    @cached_property
    def policy(self) -> Policy:
        """The dtypes in which the network computes."""
        return Policy(self._settings.compute_dtype, self.float32)

    @property
    def _settings(self) -> NetworkConfig:
        # A system that stores no such settings in ``config`` computes in float32.
        config = getattr(self, "config", None)
        return config if isinstance(config, NetworkConfig) else NetworkConfig()

    def check(self, variables: Variables) -> None:
        """Sees that the network, of such variables, reads what its settings say of modules.

        Raises:
            UserError: It does not.
        """
        self.policy.check(variables["params"], self.following)
        group = self._settings.norm_group
        if group != "global" and not variables.get("batch_stats"):
            raise UserError(f"config.model.norm_group: {group!r}, but the network has no batch norms")

    def call(
        self,
        variables: Variables,
        *arguments: Any,
        method: str | Callable[..., Any] = "__call__",
        rngs: Mapping[str, PRNGKey] | None = None,
        moving: bool = False,
        **options: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """The result of a method of the network, and the new ``batch_stats``: {} unless ``moving``.

        The network computes as its settings say (`NetworkConfig`); the result is float32.
        """
        with self.policy.in_force(), norms_over(self._settings.norm_group):
            if not moving:
                return widen(self.network.apply(variables, *arguments, method=method, **options)), {}
            moved = dict(rngs=dict(rngs or {}), mutable=["batch_stats"], **options)
            result, updates = self.network.apply(variables, *arguments, method=method, **moved)
        return widen(result), dict(updates)

    @abstractmethod
    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass of (B, H, W, 3) RGB images, uint8 or float in 0..255.

        Args:
            variables: From `init`, or trained.
            images: The batch.
            inputs: What the system takes beside the images (see `capabilities.ReadsInputs`).
            routing: How the pass is run.
            rngs: The named streams that training draws from.

        Raises:
            ValueError: A mask for a gate that there is not, or of another shape or dtype.
        """

    @abstractmethod
    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """Training loss of a batch (labels by task name, ``valid`` (B,) bool)."""

    def controls(self, step: Array, steps: int) -> dict[str, Array]:
        """Scheduled scalars (temperature, rho, ...) at ``step`` (may be traced) of a stage's ``steps``."""
        return {}

    @property
    def taken_over(self) -> TakeOver:
        """What `adapt` carries over, and under which names."""
        return TakeOver()

    def adapt(self, given: Variables, fresh: Variables) -> Variables:
        """``fresh`` with the weights of a previous stage or a pretrained backbone copied in.

        Raises:
            UserError: The weights were made for another architecture.
        """
        return take_over(given, fresh, self.taken_over)
