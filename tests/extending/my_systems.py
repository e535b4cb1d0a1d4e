"""A system of one's own: one linear layer above the last stage of any backbone, enlarged to the image.

model = dict(system="my_systems:Linear", task="segmentation", task_options=dict(classes=8))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import flax.linen as nn

from dynpix_jax.backbones import BACKBONES, BackboneConfig
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.sections import BESIDE, OneOf
from dynpix_jax.core.system import LossAux, NetworkConfig, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.nn.conv import Conv
from dynpix_jax.ops.resize import resize_bilinear
from dynpix_jax.tasks import TASKS, build


@dataclass(frozen=True)
class LinearConfig(NetworkConfig):
    """Section ``model``."""

    system: str
    task: str
    task_options: Annotated[Any, OneOf(TASKS, key="task", beside=True)] = BESIDE
    backbone: Annotated[BackboneConfig, OneOf(BACKBONES, default="resnet")] = field(
        default_factory=ResNetConfig
    )


class LinearNetwork(nn.Module):
    """(B, H, W, 3) RGB in 0..255 -> logits (B, H, W, channels)."""

    config: LinearConfig
    channels: int

    def setup(self) -> None:
        self.backbone = self.config.backbone.build()
        self.scores = Conv(self.config.backbone.stages[-1].channels, self.channels, 1, use_bias=True)

    def __call__(self, images: Array, *, train: bool = False) -> Array:
        features = self.backbone(self.config.backbone.preprocess(images), train=train)
        scores = self.scores(features[self.config.backbone.stages[-1].name])
        return resize_bilinear(scores, (images.shape[1], images.shape[2]))


class Linear(System):
    """See `core.system.System`. It has no gates, and nothing is drawn."""

    name = "linear"
    Config = LinearConfig

    def __init__(self, config: LinearConfig):
        self.config = config
        self.task = build(config.task, config.task_options, "config.model.task_options")
        self.tasks = {self.task.name: self.task}
        self.network = LinearNetwork(config, self.task.channels)

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        routing.masks_of(())  # there is no gate that a mask could replace
        # `call` has the network compute as compute_dtype and norm_group say.
        logits, updates = self.call(variables, images, train=routing.train, moving=routing.train)
        return Outputs({self.task.name: logits}, updates=updates)

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        outputs = self.apply(variables, batch["image"], routing=Routing(train=True))
        loss = self.task.loss(outputs.predictions[self.task.name], batch[self.task.target], batch["valid"])
        return loss, LossAux({self.task.name: loss}, outputs.updates)
