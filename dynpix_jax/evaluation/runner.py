"""Running a system on images: predictions, what was executed, MACs and milliseconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.core.capabilities import Chooses, StopsEarly, TakesMasks, executed_shares, gated_layers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import Progressive
from dynpix_jax.core.routing import Mode, Routing
from dynpix_jax.core.settings import InferenceConfig
from dynpix_jax.core.system import Inputs, Outputs, System
from dynpix_jax.core.typing import Array, Variables
from dynpix_jax.evaluation.inference import (
    Costs,
    all_views,
    resize_images,
    resize_inputs,
    resize_logits,
    smooth_logits,
)
from dynpix_jax.evaluation.stepwise import StepPredictor
from dynpix_jax.flops import SystemMacs, executed_macs, system_macs
from dynpix_jax.tasks import Task


@dataclass(frozen=True)
class ImageResult:
    """One image through one mode.

    Attributes:
        outputs: As numpy arrays, batch of one.
        shares: Executed share of each gated layer.
        macs: Executed MACs.
        macs_open: MACs with every gate open; a pixel's choice of pooling size stays.
        milliseconds: Time of the compiled forward pass, input already on the device.
        seen: (H, W) at which the network saw the image, which is what gates and exits are maps of.
        prediction: (number from 1, count) of a prediction within a budget; None without a budget.
        exit_macs: MACs up to each exit and the last prediction; () for a network that predicts at once.
    """

    outputs: Outputs
    shares: dict[str, float]
    macs: float
    macs_open: float
    milliseconds: float
    seen: tuple[int, int]
    prediction: tuple[int, int] | None = None
    exit_macs: tuple[float, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """A batch through one mode.

    Attributes:
        outputs: On the device.
        shares: (B,) executed share of each gated layer.
        macs: (B,) executed MACs.
        macs_open: (B,) MACs with every gate open; a pixel's choice of pooling size stays.
        milliseconds: An image, the batch's divided by its size.
        seen: (H, W) at which the network saw the images.
        exit_macs: (B,) MACs up to each exit and the last prediction; () for a network that predicts at once.
    """

    outputs: Outputs
    shares: dict[str, np.ndarray]
    macs: np.ndarray
    macs_open: np.ndarray
    milliseconds: float
    seen: tuple[int, int]
    exit_macs: tuple[np.ndarray, ...] = ()

    @cached_property
    def _on_host(self) -> Outputs:
        # All at once: a slice on the device is a program of its own for each shape.
        outputs: Outputs = jax.device_get(self.outputs)
        return outputs

    def image(self, index: int) -> ImageResult:
        """One image of the batch, copied to the host."""
        return ImageResult(
            jax.tree.map(lambda value: value[index : index + 1], self._on_host),
            {name: float(share[index]) for name, share in self.shares.items()},
            float(self.macs[index]),
            float(self.macs_open[index]),
            self.milliseconds,
            self.seen,
            exit_macs=tuple(float(macs[index]) for macs in self.exit_macs),
        )


@dataclass
class Runner:
    """Forward passes with one set of variables, compiled once for each shape of a batch and mode.

    Attributes:
        system: The system to run.
        variables: Variables of the system.
        inference: The views that an image is predicted from; predictions always have the image's size. With
            several views, outputs hold only predictions and the exits whose MACs are known, shares are means
            over views weighted by MACs, and MACs are those of all views.
        implementation: See Routing.
        warm: Run each program once before it is timed. False: the first time has the costs of first touch.
    """

    system: System
    variables: Variables
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    implementation: str | None = None
    warm: bool = True
    _compiled: dict[tuple[Mode, tuple[int, ...], frozenset[str]], Any] = field(default_factory=dict)
    _macs: dict[tuple[int, int], SystemMacs] = field(default_factory=dict)
    _stepwise: StepPredictor | None = None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, image: np.ndarray, mode: Mode, **inputs: np.ndarray) -> ImageResult:
        """Run one (H, W, 3) uint8 RGB image; inputs (H, W)."""
        return self.batch(image[None], mode, **{name: one[None] for name, one in inputs.items()}).image(0)

    def batch(
        self,
        images: np.ndarray,
        mode: Mode,
        masks: Mapping[str, np.ndarray] | None = None,
        /,
        **inputs: np.ndarray,
    ) -> BatchResult:
        """Run (B, H, W, 3) uint8 RGB images.

        Args:
            images: The images.
            mode: How gated layers are executed.
            masks: Masks in place of those of gates (`Routing.masks`), for images that have one view.
            inputs: (B, H, W), exactly those that the system takes (``ReadsInputs.inputs``).
        """
        with self._one_at_a_time:  # threads share a device: its times are those of one pass
            return self._batch(images, mode, masks or {}, inputs)

    def _batch(
        self,
        images: np.ndarray,
        mode: Mode,
        masks: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
    ) -> BatchResult:
        batch = jnp.asarray(images)
        given = {name: jnp.asarray(value) for name, value in inputs.items()}
        replaced = {name: jnp.asarray(mask) for name, mask in masks.items()}
        if replaced and not self.inference.one_view:
            raise ValueError("masks: given masks are of one view, but inference asks for several")
        forward = self._forward(mode, batch, given, replaced)
        jax.block_until_ready((batch, given, replaced))  # copies to the device are not timed
        start = time.perf_counter()
        outputs, measured = jax.block_until_ready(forward(self.variables, batch, given, replaced))
        milliseconds = 1e3 * (time.perf_counter() - start) / len(images)
        measured = jax.tree.map(lambda value: np.asarray(value, np.float64), measured)
        seen = self.inference.seen_size((images.shape[1], images.shape[2]))
        if self.inference.one_view:
            # On the host, in 64 bits: MACs of large images are beyond what 32 bits count exactly.
            measured = self._costs(measured, len(images), seen)
        executed, gated = measured["executed"], measured["gated"]
        shares = {name: executed[name] / gated[name] for name in gated}
        macs = executed_macs(measured["dense"], gated, shares)
        layers = gated_layers(self.system)
        closed = sum(gated[name] - executed[name] for name in gated if layers[name].kind == "gate")
        for name in (name for name, layer in layers.items() if layer.skipped):
            # A pixel that is skipped would take the branches that others take.
            open_share = np.maximum(shares[layers[name].choice], np.finfo(np.float64).tiny)
            closed = closed + executed[name] * (1.0 / open_share - 1.0)
        exits = tuple(measured["exits"])
        return BatchResult(outputs, shares, macs, macs + closed, milliseconds, seen, exits)

    def within(
        self, image: np.ndarray, mode: Mode, *, budget_ms: float | None, budget_macs: float | None
    ) -> ImageResult:
        """The latest prediction of one (H, W, 3) uint8 RGB image that fits both budgets.

        See StepPredictor.predict. Outputs hold the prediction alone; MACs and milliseconds are those of all
        steps up to it.

        Raises:
            UserError: A network that predicts once, or an image that is predicted from several views.
        """
        if not isinstance(self.system, Progressive):
            raise UserError(
                f"budget: networks of the system {self.system.name!r} predict once; those that predict in "
                "steps (exits, loops, iterates) can stop in time"
            )
        if not self.inference.one_view:
            raise UserError(
                "budget: config.evaluation.inference asks for several views of an image; a prediction in "
                "time has one (no flip, no window, one scale)"
            )
        if self._stepwise is None:
            count = lambda _, size: self.macs(size)  # noqa: E731
            self._stepwise = StepPredictor(self.system, self.variables, count=count)
        size = (image.shape[0], image.shape[1])
        seen = self.inference.seen_size(size)
        images, routing = resize_images(jnp.asarray(image[None]), seen), self._routing(mode)
        found = self._stepwise.predict(images, routing=routing, budget_ms=budget_ms, budget_macs=budget_macs)
        predictions = self._smooth(resize_logits(found.predictions, self.system.tasks, size))
        outputs = Outputs(jax.tree.map(np.asarray, predictions))
        place = (found.index + 1, self._stepwise.count(images, {}, routing))
        macs = found.total_macs
        return ImageResult(outputs, {}, macs, macs, found.total_milliseconds, seen, place)

    def macs(self, size: tuple[int, int]) -> SystemMacs:
        """MACs of the dense program on one (H, W) image, by gated layer and step."""
        if size not in self._macs:
            self._macs[size] = system_macs(self.system, size)
        return self._macs[size]

    def _costs(self, shares: Mapping[str, Any], count: int, size: tuple[int, int]) -> Costs:
        """MACs of a batch: dense, of each gated layer at density 1 and as executed, and up to each exit."""
        macs = self.macs(size)
        return {
            "exits": [one * np.ones(count) for one in macs.up_to_predictions(shares)],
            "dense": np.full(count, macs.report.total),
            "gated": {name: np.full(count, value) for name, value in macs.gated.items()},
            "executed": {name: shares[name] * value for name, value in macs.gated.items()},
        }

    def _routing(self, mode: Mode, masks: Mapping[str, Array] | None = None) -> Routing:
        return Routing(mode=mode, implementation=self.implementation, masks=masks or {})

    def _forward(self, mode: Mode, batch: jax.Array, inputs: Inputs, masks: Mapping[str, Array]) -> Any:
        key = (mode, batch.shape, frozenset(masks))
        if key not in self._compiled:
            forward = partial(self._one_view if self.inference.one_view else self._views, mode=mode)
            compiled = jax.jit(forward).lower(self.variables, batch, inputs, masks).compile()
            if self.warm:  # first-touch costs are not the network's
                jax.block_until_ready(compiled(self.variables, batch, inputs, masks))
            self._compiled[key] = compiled
        return self._compiled[key]

    def _one_view(
        self, variables: Variables, images: Array, inputs: Inputs, masks: Mapping[str, Array], mode: Mode
    ) -> tuple[Outputs, dict[str, Array]]:
        size = (images.shape[1], images.shape[2])
        seen = self.inference.seen_size(size)
        given = resize_inputs(inputs, seen)
        outputs = self.system.apply(variables, resize_images(images, seen), given, self._routing(mode, masks))
        shares = executed_shares(self.system, outputs)
        predictions = self._smooth(resize_logits(outputs.predictions, self.system.tasks, size))
        return replace(outputs, predictions=predictions), shares

    def _views(
        self, variables: Variables, images: Array, inputs: Inputs, _: Mapping[str, Array], mode: Mode
    ) -> tuple[Outputs, Costs]:
        # Views treat exits as further tasks, keyed (exit, task); -1 is the last prediction.
        tasks: dict[tuple[int, str], Task] = {}

        def predict(images: Array, **given: Any) -> tuple[dict[tuple[int, str], Array], Costs]:
            outputs = self.system.apply(variables, images, given, self._routing(mode))
            shares = executed_shares(self.system, outputs)
            costs = self._costs(shares, images.shape[0], (images.shape[1], images.shape[2]))
            made = {-1: outputs.predictions}
            made |= dict(enumerate(outputs.exits if costs["exits"] else ()))
            tasks.update({(index, name): self.system.tasks[name] for index in made for name in made[index]})
            logits = {(index, name): logits for index in made for name, logits in made[index].items()}
            return logits, jax.tree.map(jnp.asarray, costs)

        found, costs = all_views(predict, tasks, self.inference)(images, **inputs)

        def of(index: int) -> dict[str, Array]:
            return {name: found[index, name] for name in self.system.tasks}

        exits = tuple(of(index) for index in range(len(costs["exits"]) - 1))
        return Outputs(self._smooth(of(-1)), exits=exits), costs

    def _smooth(self, predictions: Mapping[str, Array]) -> dict[str, Array]:
        return dict(smooth_logits(predictions, self.system.tasks, self.inference.blur))


def ponder_maps(system: System, result: ImageResult, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The system's ponder maps of an image, (H, W) of ``size``; {} without gates."""
    if not isinstance(system, TakesMasks):
        return {}
    maps = system.ponder_maps(result.outputs, result.seen)
    return {
        name: cv2.resize(np.asarray(shares[0]), (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
        for name, shares in maps.items()
    }


def choice_maps(system: System, result: ImageResult, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The system's choice maps of an image, int32 (H, W) of ``size``; {} where pixels choose nothing."""
    if not isinstance(system, Chooses):
        return {}
    maps = system.choice_maps(result.outputs, result.seen)
    return {
        name: cv2.resize(np.asarray(chosen[0]), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
        for name, chosen in maps.items()
    }


def earlier_predictions(
    system: System, result: ImageResult, size: tuple[int, int]
) -> list[dict[str, np.ndarray]]:
    """The exits of an image (`Outputs.exits`), decoded, at ``size`` (H, W).

    [] for a network that does not predict in steps: its side outputs are for training.
    """
    steps: list[dict[str, np.ndarray]] = []
    if not result.exit_macs:
        return steps
    for exit in result.outputs.exits:
        logits = resize_logits(exit, system.tasks, size)
        steps.append(
            {name: np.asarray(system.tasks[name].decode(value)[0]) for name, value in logits.items()}
        )
    return steps


def exit_maps(
    system: System, result: ImageResult, size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray | None, float]]:
    """`StopsEarly.exit_maps` of an image at ``size`` (H, W), where it stops as bool, and MACs up to each."""
    if not result.outputs.exits or not isinstance(system, StopsEarly):
        return []

    def resized(values: Array) -> np.ndarray:
        return cv2.resize(np.asarray(values[0]), (size[1], size[0]), interpolation=cv2.INTER_NEAREST)

    pairs = zip(system.exit_maps(result.outputs), result.exit_macs, strict=False)
    return [
        (resized(confidence), None if computed is None else resized(computed) < 0.5, up_to)
        for (confidence, computed), up_to in pairs
    ]
