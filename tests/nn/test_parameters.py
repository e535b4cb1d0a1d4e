"""Parameters of known shapes: made once, checked always."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.parameters import parameter

IMAGE = jnp.ones((1, 4, 4, 3))


def test_the_initializer_is_asked_when_the_parameter_is_made_and_not_again():
    asked = []

    def init(key, shape, dtype):
        asked.append(shape)
        return jnp.full(shape, 2.0, dtype)

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * parameter(self, "scale", init, (3,))

    variables = Scaled().init(jax.random.key(0), IMAGE)
    assert asked == [(3,)]
    assert (Scaled().apply(variables, IMAGE) == 2).all()
    jax.jit(Scaled().apply).lower(variables, IMAGE)
    assert asked == [(3,)]


@pytest.mark.parametrize(
    ("one", "other"),
    [(Conv(3, 4), Conv(3, 5)), (Conv(3, 4), Conv(3, 4, kernel_size=1)), (BatchNorm(3), BatchNorm(1))],
)
def test_parameters_of_another_shape_are_refused(one, other):
    variables = one.init(jax.random.key(0), IMAGE)
    with pytest.raises(flax.errors.ScopeParamShapeError):
        other.apply(variables, IMAGE)


def test_a_parameter_that_is_not_there_is_named():
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="kernel"):
        Conv(3, 4).apply({"params": {"bias": jnp.zeros(4)}}, IMAGE)
