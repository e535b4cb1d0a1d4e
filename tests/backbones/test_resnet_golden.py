"""The real Caffe ResNet-50 on photographs of BSDS500: the whole way from files to a named animal."""

from __future__ import annotations

from functools import partial

import cv2
import jax
import numpy as np
import pytest

from dynpix_jax.backbones.resnet import ResNet, ResNetConfig
from dynpix_jax.weights import import_weights

# (photo, ImageNet class, its logit). The logits: same weights, whole photos, in PyTorch 2.13,
# put together from its own convolutions, batch norm and pooling, independently of this package.
PHOTOS = {
    "lion": ("train/105053", 291, 12.266431),
    "zebra": ("val/253027", 340, 10.957410),
    "leopard": ("val/134035", 288, 10.187171),
    "polar bear": ("train/183055", 296, 13.864256),
}


@pytest.fixture(scope="module")
def classify(shared):
    variables, report = import_weights(
        "resnet50", shared / "weights/resnet50_v1_caffe_torchnames_fp16.safetensors"
    )
    assert report.missing == report.unexpected == ()
    config = ResNetConfig(depth=50, output_stride=32, stride_in_1x1=True, preprocessing="caffe")
    model = ResNet(config, classes=1000)
    run = jax.jit(lambda variables, images: model.apply(variables, config.preprocess(images))["logits"])
    return partial(run, variables)  # as constants they would be folded, which takes long


@pytest.mark.parametrize("animal", PHOTOS)
def test_animals_on_photos(shared, classify, animal):
    photo, label, logit = PHOTOS[animal]
    path = shared / "data/BSDS500/data/images" / f"{photo}.jpg"
    bgr = cv2.imread(str(path))
    assert bgr is not None, path
    logits = np.asarray(classify(bgr[None, ..., ::-1].copy()))[0]
    assert logits.argmax() == label
    # JPEG decoders may differ by a grey level here and there.
    np.testing.assert_allclose(logits[label], logit, atol=0.05)
