"""Attentive Single-Tasking of Multiple Tasks (Maninis, Radosavovic and Kokkinos, CVPR 2019; ASTMT).

One network does one task at a time: encoder and decoder are shared, each task has small modules of its own
(squeeze-and-excitation, residual adapters, norms), and a discriminator that reads the tasks' loss gradients
makes them similar (appendix, eq. 1). A training step has a turn for every task: a forward pass, a loss, and
an update of the parameters that this task uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dynpix_jax.core.adapt import TakeOver
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.papers.astmt.adversarial import discriminator_loss, loss_and_gradient, reversal_strength
from dynpix_jax.papers.astmt.config import (
    AdversarialConfig,
    AstmtConfig,
    DecoderConfig,
    EncoderConfig,
)
from dynpix_jax.papers.astmt.network import AstmtNetwork, Features, head_name

__all__ = [
    "AdversarialConfig",
    "Astmt",
    "AstmtConfig",
    "AstmtNetwork",
    "DecoderConfig",
    "EncoderConfig",
]


class Astmt(System):
    """ASTMT as pure functions; see System. Its turns are its tasks."""

    name = "astmt"
    Config = AstmtConfig

    def __init__(self, config: AstmtConfig):
        given = config.task_options
        self.tasks = {task.name: task for task in given.values()}
        # From here on, a user's task, "package.module:Name", goes by its own name.
        self.config = config = dataclasses.replace(
            config,
            tasks=tuple(self.tasks),
            task_options=dict(self.tasks),
            task_weights={given[name].name: weight for name, weight in config.task_weights.items()},
        )
        self.turns = config.tasks
        channels = {name: task.channels for name, task in self.tasks.items()}
        self.network: AstmtNetwork = AstmtNetwork(config, channels)

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """All tasks' predictions; shared features are computed once.

        There are no gates: masks must be empty, both modes are the same, and no random numbers are drawn.
        Training takes the tasks in turn (`turn_loss`); here the norms of all tasks move.
        """
        routing.masks_of(())
        train = routing.train
        predictions, updates = self.call(variables, images, moving=train, train=train)
        return Outputs(predictions, updates=updates)

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """The sum of the turns' losses at the same parameters; see `turn_loss`."""
        total, terms = jnp.zeros(()), dict[str, Array]()
        updates: dict[str, Any] = {}
        for turn in self.turns:
            loss, aux = self.turn_loss({**variables, **updates}, batch, turn, rngs=rngs, controls=controls)
            total, terms, updates = total + loss, terms | aux.terms, aux.updates
        return total, LossAux(terms, updates)

    def turn_loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        turn: str,
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """Eq. 1 of one task: (1 - w_d) w_t L_t + w_d L_d.

        Terms: ``TASK``, weighted, and ``TASK/discriminator``.
        """
        task, weight = self.tasks[turn], float(self.config.task_weights.get(turn, 1.0))
        images, size = batch["image"], (batch["image"].shape[1], batch["image"].shape[2])
        features: Features
        features, updates = self.call(variables, images, turn, method="features", moving=True, train=True)
        moved = {**variables, **updates}

        def read(first: Array) -> tuple[Array, Any]:
            arguments = ((first, features[1]), turn, size)
            logits, updates = self.call(moved, *arguments, method="read", moving=True, train=True)
            return weight * task.loss(logits, batch[task.target], batch["valid"]), updates

        adversarial = self.config.adversarial
        # Without a weight the program is the plain one, bit for bit.
        if adversarial is None or not adversarial.weight:
            loss, updates = read(features[0])
            return loss, LossAux({turn: loss}, updates)
        loss, updates, gradient = loss_and_gradient(read, features[0])

        def discriminate(gradient: Array) -> Array:
            tasks: Array = self.call(variables, gradient, method="discriminate")[0]
            return tasks

        labelled, index = self._labelled(batch, turn), self.config.tasks.index(turn)
        adversary = discriminator_loss(discriminate, gradient, labelled, index, controls["reversal"])
        loss, adversary = (1.0 - adversarial.weight) * loss, adversarial.weight * adversary
        return loss + adversary, LossAux({turn: loss, f"{turn}/discriminator": adversary}, updates)

    def controls(self, step: Array, steps: int) -> dict[str, Array]:
        """``reversal``: strength of the gradient's reversal, constant within each of the stage's epochs."""
        adversarial = self.config.adversarial
        if adversarial is None:
            return {}
        epochs = adversarial.epochs
        epoch = jnp.floor(jnp.asarray(step, jnp.float32) * epochs / max(steps, 1))
        return {"reversal": reversal_strength(jnp.minimum(epoch, epochs - 1), epochs)}

    def uses(self, turn: str, path: str) -> bool:
        """Whether the turn uses it: not another task's own, nor the discriminator if that has no weight."""
        parts = path.split("/")
        if parts[0] == "discriminator":
            return self.config.adversarial is not None and self.config.adversarial.weight > 0
        return self.owner(path) in (None, turn)

    def owner(self, path: str) -> str | None:
        """The only task that uses the variable at ``path``; None for a shared variable."""
        parts = path.split("/")
        names = [task for task in self.turns if task in parts or head_name(task) in parts]
        return names[0] if names else None

    def labelled(self, batch: Mapping[str, Array], turn: str) -> Array:
        """Whether any pixel of the batch has a label of that task."""
        return self._labelled(batch, turn).any()

    def _labelled(self, batch: Mapping[str, Array], name: str) -> Array:
        """(B, H, W) bool: pixels that the task's loss counts."""
        task = self.tasks[name]
        return task.labelled(batch[task.target]) & batch["valid"][:, None, None]

    @property
    def taken_over(self) -> TakeOver:
        """Every task's own norm or SE starts from the shared one.

        Adapters stay fresh, and SE that the weights lack (torchvision's MobileNetV2 has none).
        """
        backbone = self.config.backbone

        def renames(path: str) -> list[str]:
            return ["/".join(part for part in path.split("/") if part not in self.config.tasks)]

        blocks = frozenset(spec.name for spec in backbone.block_specs)
        return TakeOver(backbone.name, blocks, renames, stays_fresh=".*/(se|adapter)/.*")
