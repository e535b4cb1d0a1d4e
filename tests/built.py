"""What the settings of a network build, in parts that can be compared: programs, traced and never run."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from dynpix_jax import papers
from dynpix_jax.core.capabilities import (
    Calibrates,
    Chooses,
    ReadsInputs,
    alternatives_of,
    choices_of,
    gated_layers,
    inputs_of,
)
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.settings import ModelConfig
from dynpix_jax.core.system import System
from dynpix_jax.core.task import Task
from dynpix_jax.training.step import STREAMS

SIZE = (72, 88)
"""(H, W): no multiple of 16, so that what becomes of odd sides shows."""

LABELS: dict[str, tuple[tuple[int, ...], Any]] = {
    "segmentation": (SIZE, jnp.int32),
    "instances": (SIZE, jnp.int32),
    "parts": (SIZE, jnp.int32),
    "boundaries": (SIZE, jnp.float32),
    "saliency": (SIZE, jnp.float32),
    "depth": (SIZE, jnp.float32),
    "normals": ((*SIZE, 3), jnp.float32),
    "albedo": ((*SIZE, 3), jnp.float32),
    "keypoints": ((16, 3), jnp.float32),
    "head_size": ((), jnp.float32),
}
"""Shape, after the batch's, and type of every label."""


def text_of(function: Callable[..., Any], *arguments: Any) -> str:
    """The program of a function of arrays: operations, constants and results, without what nothing needs."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    program, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    found = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(program)).encode())
    for constant in closed.consts:
        found.update(np.asarray(constant).tobytes())
    return f"{found.hexdigest()} {shapes}"


def parts(config: ModelConfig) -> Iterator[str]:
    """Everything that a typed model builds, the cheapest first."""
    system = papers.build(config)
    yield _facts(system)
    yield from (_of_task(task) for task in system.tasks.values())
    image = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = partial(system.init, batch={"image": np.zeros(image.shape, np.uint8)})
    variables = jax.eval_shape(init, key)
    system.check(variables)  # refuses what these parameters do not read
    yield str(variables)
    batch = {name: _label(name) for name in {*_read(system), *(n for n in LABELS if n in inputs_of(system))}}
    batch |= {"image": image, "valid": jax.ShapeDtypeStruct((2,), bool)}
    rngs = dict.fromkeys(STREAMS, key)

    def controls(step: Any) -> Any:
        return system.controls(step, 1000)

    step = jax.ShapeDtypeStruct((), jnp.int32)
    yield text_of(controls, step)

    def loss(variables: Any, batch: Any, rngs: Any, controls: Any) -> Any:
        return system.loss(variables, batch, rngs=rngs, controls=controls)

    given = jax.eval_shape(controls, step)
    yield text_of(loss, variables, batch, rngs, given)
    yield text_of(init, key)
    for routing in (Routing(), Routing(mode="sparse")):
        yield text_of(partial(_predict, system, routing), variables, batch)
    yield text_of(jax.grad(loss, has_aux=True), variables, batch, rngs, given)
    for name, other in alternatives_of(system).items():
        yield name + text_of(partial(_predict, other, Routing()), variables, batch)


def _predict(system: System, routing: Routing, variables: Any, batch: Any) -> Any:
    inputs = {name: batch[name] for name in inputs_of(system)}
    outputs = system.apply(variables, batch["image"], inputs, routing)
    found = [outputs.predictions, outputs.gates, outputs.selections, outputs.exits, outputs.measures]
    if isinstance(system, Chooses):
        found += [system.choice_maps(outputs, SIZE), system.true_choices(batch)]
    return found


def _read(system: System) -> set[str]:
    """The labels that a system reads."""
    own = {name for task in system.tasks.values() for name in task.labels}
    return own | set(system.supervision if isinstance(system, ReadsInputs) else ())


def _label(name: str) -> jax.ShapeDtypeStruct:
    shape, kind = LABELS[name]
    return jax.ShapeDtypeStruct((2, *shape), kind)


def _facts(system: System) -> str:
    """What a system says of itself."""
    found: list[Any] = [sorted(_read(system)), inputs_of(system), list(alternatives_of(system))]
    found += [
        choices_of(system),
        gated_layers(system),
    ]
    if isinstance(system, Calibrates):
        found += [system.calibration_images, system.config.gate.calibrate]
    for task in system.tasks.values():
        found += [task.name, [score.name for score in task.scores], task.channels]
    return repr(found)


def _of_task(task: Task) -> str:
    """Decoding, views and scores of a task."""
    height, width = task.logits_size(SIZE)
    logits = jax.ShapeDtypeStruct((2, height, width, task.channels), jnp.float32)
    batch = {name: _label(name) for name in task.labels} | {"valid": jax.ShapeDtypeStruct((2,), bool)}
    found = [text_of(lambda x: [task.decode(x), task.mirror(x), task.rescale(x, 2.0)], logits)]
    measure = getattr(task, "measure", None)
    if measure is None:
        return found[0]

    def measured(logits: Any, batch: Any) -> Any:
        return measure(task.decode(logits), batch)

    found.append(text_of(measured, logits, batch))
    sums = jax.eval_shape(measured, logits, batch)
    state = {name: _filled(leaf.shape) for name, leaf in sums.items()}
    return " ".join([*found, repr(task.compute(state))])


def _filled(shape: tuple[int, ...]) -> np.ndarray:
    """Sums of which no two are equal; those of the last class are 0."""
    sums = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape)
    for axis in range(len(shape)):
        np.moveaxis(sums, axis, 0)[-1:] = 0
    return sums


class Built:
    """The `parts` of a network, each made when it is asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._rest = parts(config)
        self._made: list[str | None] = []

    def part(self, index: int) -> str | None:
        """One part; None beyond the last."""
        while len(self._made) <= index:
            self._made.append(next(self._rest, None))
        return self._made[index]

    def same(self, other: Built) -> bool:
        """Whether two networks are the same, part by part up to the first that differs."""
        if self.config == other.config:
            return True
        for index in itertools.count():
            first, second = self.part(index), other.part(index)
            if first != second or first is None:
                return first == second
        raise AssertionError("unreachable")
