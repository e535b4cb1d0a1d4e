"""MobileNetV2: dilations beyond the output stride, as released by ASTMT or as in pretrained networks."""

from __future__ import annotations

import pytest

from dynpix_jax.backbones.mobilenet import MobileNetConfig
from dynpix_jax.core.sections import unread


@pytest.mark.parametrize(("stride", "middle", "last"), [(8, 2, 4), (16, 1, 2)])
def test_the_first_block_behind_a_removed_stride(stride, middle, last):
    """As released every block of the stages has (2, 4) or (1, 2), block 14 too, whose stride is removed."""
    released = [spec.dilation for spec in MobileNetConfig(output_stride=stride).block_specs]
    assert released == [1] * 6 + [middle] * 7 + [last] * 4
    kept = [spec.dilation for spec in MobileNetConfig(output_stride=stride, first_dilated=False).block_specs]
    assert kept == [1] * 7 + [middle] * 6 + [middle] + [last] * 3
    assert [spec.strides for spec in MobileNetConfig(output_stride=stride).block_specs][13] == 1


def test_nothing_is_dilated_at_stride_32():
    assert {spec.dilation for spec in MobileNetConfig(output_stride=32).block_specs} == {1}
    (found,) = unread(MobileNetConfig(output_stride=32, first_dilated=False))
    assert found[0] == "first_dilated"
