"""Every norm of the systems with the option `running_variance` stores the variance that it names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import pytest

from dynpix_jax import papers
from dynpix_jax.core.errors import UserError
from dynpix_jax.flops import variable_shapes
from dynpix_jax.nn.norm import BatchNorm
from tests.papers.astmt import tiny as astmt

ANYTIME = dict(
    system="anytime",
    task="segmentation",
    task_options=dict(classes=3),
    backbone=dict(arch="w18s1", width=4, blocks=1),
    heads=dict(features=4),
)
MDEQ = dict(system="mdeq", task_options=dict(classes=3), cell=dict(channels=(4, 8), expansion=1, groups=2))

BACKBONES: tuple[dict[str, Any], ...] = (
    dict(se=True, depth=26, width=4, output_stride=16, frozen_norm=False),
    dict(depth=18, width=4, output_stride=16, frozen_norm=False),
    dict(name="mobilenetv2", width=0.25),
    dict(name="vgg16", width=2, fc_features=4, batch_norm=True),
    dict(name="hrnet", arch="w18s1", width=4, blocks=1),
)
"""Under ASTMT, with nothing of a task's own."""


def astmt_on(backbone: dict[str, Any]) -> dict[str, Any]:
    decoder = dict(kind="uber") if backbone.get("depth") == 18 else dict(features=6, rates=(1,))
    return astmt.section(backbone=backbone, encoder={}, decoder=decoder)


@pytest.mark.parametrize("kind", ["unbiased", "biased"])
@pytest.mark.parametrize(
    ("section", "norms"),
    [(ANYTIME, 60), (MDEQ, 4), *((astmt_on(backbone), 9) for backbone in BACKBONES)],
    ids=["anytime", "mdeq", *(f"astmt-{one.get('name', one.get('depth'))}" for one in BACKBONES)],
)
def test_running_variances(section: dict[str, Any], norms: int, kind: str) -> None:
    seen = []

    def look(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm):
            seen.append(context.module.unbiased)
        return call(*arguments, **options)

    with nn.intercept_methods(look):
        variable_shapes(papers.build({**section, "running_variance": kind}))
    assert len(seen) >= norms
    assert set(seen) == {kind == "unbiased"}


def test_frozen_norms_store_nothing() -> None:
    frozen = {**ANYTIME, "backbone": dict(arch="w18s1", frozen_norm=True), "running_variance": "biased"}
    with pytest.raises(UserError, match=r"model\.running_variance: nothing reads 'biased'"):
        papers.parse(frozen)
