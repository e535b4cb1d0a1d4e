"""What every backbone of the table promises to the systems (backbones.base), on a small form of each."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones import BACKBONES
from dynpix_jax.backbones.base import BuildOptions, Stage, at_stride
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.trees import named_leaves

SMALL = {
    "resnet": dict(depth=26, width=4, output_stride=16),
    "mobilenetv2": dict(width=0.25),
    "vgg16": dict(width=2, fc_features=4),
    "hrnet": dict(arch="w18s1", width=4, blocks=1),
}
SIZE = (45, 70)


def config_of(name: str):
    return BACKBONES.resolve(name, "backbone.name")(**SMALL[name])


def shapes(network: nn.Module):
    """(parameter names, features) as shapes; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    features, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    return {path for path, _ in named_leaves(variables["params"])}, features


def test_every_backbone_is_tested():
    assert set(SMALL) == set(BACKBONES)
    with pytest.raises(UserError, match="there is no backbone 'resent'; did you mean 'resnet'"):
        BACKBONES.resolve("resent", "config.model.backbone.name")


@pytest.mark.parametrize("name", SMALL)
def test_stages_tell_what_they_give(name):
    config = config_of(name)
    assert config.name == name
    _, features = shapes(config.build())
    expected = {s.name: (1, *(-(-side // s.stride) for side in SIZE), s.channels) for s in config.stages}
    assert {key: x.shape for key, x in features.items()} == expected
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), np.uint8))
    assert config.preprocess(images).dtype == jnp.float32
    assert config.preprocess(images).shape == images.shape


@pytest.mark.parametrize("name", SMALL)
def test_what_is_read_is_built(name):
    """A stage alone has the names that it has among all, and the same feature."""
    config = config_of(name)
    everything, features = shapes(config.build())
    stage = config.stages[1].name
    names, alone = shapes(config.build(BuildOptions(taps=(stage,))))
    assert alone[stage].shape == features[stage].shape
    assert names <= everything
    if config.block_specs:
        assert names < everything


class Wrapped(nn.Module):
    block: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.block)
        self.extra = nn.Dense(1)

    def __call__(self, x):
        return self.block(x) + self.extra(x).mean()


@pytest.mark.parametrize("name", [name for name in SMALL if config_of(name).block_specs])
def test_a_hook_wraps_every_block(name):
    """Wrappers share the scope of what they wrap: its parameters keep their names."""
    config = config_of(name)
    specs = config.block_specs
    assert len({spec.name for spec in specs}) == len(specs)
    assert [spec.stage for spec in specs] == sorted(spec.stage for spec in specs)
    assert {spec.stage for spec in specs} == {stage.name for stage in config.stages}
    for below, above in itertools.pairwise(specs):
        assert below.out_features == above.in_features
    seen = []

    def hook(spec, make):
        seen.append(spec)
        return Wrapped(make(parent=None), name=spec.name)

    plain, _ = shapes(config.build())

    class Caller(nn.Module):
        @nn.compact
        def __call__(self, x):
            network = config.build(BuildOptions(hook=hook))
            return network.run(x, lambda block, x: (block(x), None))[0]

    wrapped, _ = shapes(Caller())
    wrapped = {path.partition("/")[2] for path in wrapped}
    assert tuple(seen[: len(specs)]) == specs
    assert wrapped - plain == {f"{spec.name}/extra/{leaf}" for spec in specs for leaf in ("kernel", "bias")}
    assert plain <= wrapped


def test_blocks_are_dropped_from_the_top():
    config = config_of("resnet")
    names, features = shapes(config.build(BuildOptions(drop_blocks=3)))
    assert set(features) == {"res2", "res3", "res4"}
    assert {path.split("/")[0] for path in names if path.startswith("res4")} == {"res4_1"}
    with pytest.raises(ValueError, match="drop_blocks: 8; the backbone has only 8"):
        shapes(config.build(BuildOptions(drop_blocks=8)))


def test_a_stage_by_its_stride():
    stages = (Stage("a", 4, 2), Stage("b", 8, 4), Stage("c", 8, 4))
    assert at_stride(stages, 4).name == "c"
    with pytest.raises(ValueError, match=r"no stage has stride 8; there are \[2, 4\]"):
        at_stride(stages, 8)
