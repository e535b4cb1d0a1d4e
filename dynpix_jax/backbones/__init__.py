"""Level 3: backbones behind one contract (`base`), and the table of them."""

from dynpix_jax.backbones.base import BackboneConfig
from dynpix_jax.core.registry import Registry

BACKBONES: Registry[type[BackboneConfig]] = Registry(
    "backbone",
    {
        "resnet": "dynpix_jax.backbones.resnet:ResNetConfig",
        "mobilenetv2": "dynpix_jax.backbones.mobilenet:MobileNetConfig",
        "vgg16": "dynpix_jax.backbones.vgg:VGGConfig",
        "hrnet": "dynpix_jax.backbones.hrnet:HRNetConfig",
    },
)
"""The classes of ``model.backbone`` by ``name``."""
