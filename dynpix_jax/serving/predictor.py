"""A trained network as a function of images: `predictor(image) -> {task: array}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from dynpix_jax.core.capabilities import density, inputs_of
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.routing import Mode
from dynpix_jax.core.system import System
from dynpix_jax.core.typing import Variables
from dynpix_jax.data.images import as_rgb, read_image
from dynpix_jax.evaluation.runner import ImageResult, Runner, ponder_maps
from dynpix_jax.evaluation.tiles import Mosaic, Tile, in_tiles, is_large
from dynpix_jax.serving.network_file import find_network, network_run, network_stage
from dynpix_jax.serving.trained import Trained, open_run, open_weights


@dataclass(frozen=True)
class Labelled:
    """An image's predictions, and what they cost.

    Attributes:
        predictions: Task -> decoded prediction at the image's size: (H, W) classes, probabilities or metres,
            (H, W, 3) normals, (K, 3) joints.
        ponder: Executed shares (H, W) in [0, 1] of each group of layers, and ``total``; {} without gates.
        macs: Executed multiply-accumulates.
        macs_open: Those with every gate open.
        milliseconds: Time of the compiled forward pass.
        density: Mean executed share of the gates; None without gates.
        prediction: (number from 1, count) of a prediction within a budget; None without a budget.
    """

    predictions: dict[str, np.ndarray]
    ponder: dict[str, np.ndarray]
    macs: float
    macs_open: float
    milliseconds: float
    density: float | None
    prediction: tuple[int, int] | None = None


class Predictor:
    """Predicts with one trained network; compiles once for each shape of images and mode.

    Args:
        run: Settings of its training.
        trained: The network.
        warm: See `Runner`.

    Attributes:
        run: Settings of its training.
        system: The network, a `core.system.System`.
        variables: {"params": ..., "batch_stats": ...}.
        stage: Name of the training stage that it was taken from.
    """

    def __init__(self, run: RunConfig, trained: Trained, *, warm: bool = True) -> None:
        self.run, self.trained, self.warm = run, trained, warm
        self.system: System = trained.system
        self.variables: Variables = trained.variables
        self.stage = trained.stage

    def __repr__(self) -> str:
        return f"Predictor({self.run.name}, stage {self.stage}: {', '.join(self.tasks)})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of what it predicts."""
        return tuple(self.system.tasks)

    @cached_property
    def runner(self) -> Runner:
        """Its compiled programs."""
        inference, implementation = self.run.evaluation.inference, self.run.execution.implementation
        return Runner(self.system, self.variables, inference, implementation, self.warm)

    def __call__(
        self,
        images: Any,
        *,
        mode: Mode = "sparse",
        budget_ms: float | None = None,
        budget_macs: float | None = None,
        **inputs: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """The predictions of an image, or of a batch of images of one size; large ones in tiles.

        Args:
            images: uint8 RGB (H, W, 3) or (B, H, W, 3), an array (NumPy's, JAX's) or a list of images of
                one size; a Pillow image; or the path of a picture.
            mode: ``sparse`` computes at active positions only, ``dense`` everywhere; the result is the same.
            budget_ms: Milliseconds an image: the latest prediction in time of a network with exits, loops or
                iterates.
            budget_macs: The same in multiply-accumulates.
            **inputs: What the network takes beside the image, such as ``depth``: (H, W) or (B, H, W).

        Returns:
            Task -> array at the size of the image; of a batch with B in front. Classes are int32; uint8 of
            an image in tiles, which is large, where there are at most 256.

        Raises:
            UserError: A picture that cannot be read; a budget for a network that predicts once.
            ValueError: Images of another shape or type.
        """
        batch, single = _as_batch(images)
        given = {name: np.asarray(value) for name, value in inputs.items()}
        given = {name: value[None] if single else value for name, value in given.items()}
        self._check_inputs(given)
        if budget_ms is None and budget_macs is None:
            found = self._predicted(batch, mode, given)
        else:
            limits = dict(budget_ms=budget_ms, budget_macs=budget_macs)
            each = [
                self._decoded(self._within(image, mode, limits, given).outputs.predictions) for image in batch
            ]
            found = {task: np.concatenate([one[task] for one in each]) for task in each[0]}
        return {task: values[0] if single else values for task, values in found.items()}

    def label(
        self,
        image: Any,
        *,
        mode: Mode = "sparse",
        budget_ms: float | None = None,
        budget_macs: float | None = None,
        **inputs: np.ndarray,
    ) -> Labelled:
        """The predictions of one image with their costs and ponder maps; arguments as of a call.

        Of an image in tiles the costs are those of all of them, and the density is their mean by MACs.

        Raises:
            UserError, ValueError: As of a call; a batch.
        """
        batch, single = _as_batch(image)
        if not single:
            raise ValueError(f"image: expected one image (H, W, 3), got a batch {batch.shape}")
        pixels = batch[0]
        given = {name: np.asarray(value)[None] for name, value in inputs.items()}
        self._check_inputs(given)
        ponder = Mosaic(pixels.shape[:2], step=1)

        def look(tile: Tile, result: ImageResult) -> None:
            if result.outputs.gates:
                ponder.add(tile, ponder_maps(self.system, result, tile.size))

        if budget_ms is None and budget_macs is None:
            predictions, result = self._whole(pixels, mode, given, look)
        else:
            limits = dict(budget_ms=budget_ms, budget_macs=budget_macs)
            within = partial(self._within, mode=mode, limits=limits, inputs=given)
            side = max(pixels.shape[:2])  # a budget is for one pass
            predictions, result = in_tiles(within, self.system.tasks, pixels, side=side, each=look)
        return Labelled(
            predictions,
            ponder.maps,
            result.macs,
            result.macs_open,
            result.milliseconds,
            density(self.system, result.shares),
            result.prediction,
        )

    def _predicted(
        self, batch: np.ndarray, mode: Mode, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        if not is_large(batch[0]):
            return self._decoded(self.runner.batch(batch, mode, **inputs).outputs.predictions)
        parts = []
        for index, image in enumerate(batch):
            given = {name: value[index : index + 1] for name, value in inputs.items()}
            parts.append(self._whole(image, mode, given)[0])
        return {task: np.stack([part[task] for part in parts]) for task in self.tasks}

    def _whole(
        self,
        image: np.ndarray,
        mode: Mode,
        inputs: Mapping[str, np.ndarray],
        look: Callable[[Tile, ImageResult], None] = lambda tile, result: None,
    ) -> tuple[dict[str, np.ndarray], ImageResult]:
        """See `in_tiles`; what the network takes beside the image, (1, H, W), is not cut into tiles."""
        given = {name: value[0] for name, value in inputs.items()}
        side = max(image.shape[:2]) if inputs else None
        run = partial(self.runner, mode=mode, **given)
        return in_tiles(run, self.system.tasks, image, side=side, each=look)

    def _within(
        self, image: np.ndarray, mode: Mode, limits: Mapping[str, float | None], inputs: Mapping[str, Any]
    ) -> ImageResult:
        if inputs:
            raise UserError(f"budget: {self.run.name} takes {' and '.join(inputs)} beside the image")
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}: {value}; expected a number above 0")
        return self.runner.within(
            image, mode, budget_ms=limits["budget_ms"], budget_macs=limits["budget_macs"]
        )

    def _check_inputs(self, given: Mapping[str, Any]) -> None:
        expected = inputs_of(self.system)
        for name in given:
            if name not in expected:
                raise ValueError(f"{name}: the network does not take it; {suggest(name, expected)}")
        if missing := [name for name in expected if name not in given]:
            raise UserError(
                f"{self.run.name}: its network takes {' and '.join(missing)} beside the image; "
                f"give {missing[0]}="
            )

    def _decoded(self, predictions: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(task.decode(predictions[name])) for name, task in self.system.tasks.items()}


def load(name: str | Path, *, stage: str | None = None, overrides: Sequence[str] = ()) -> Predictor:
    """Opens a trained network.

    Args:
        name: One that ships (`dynpix models`), a workdir of `dynpix train`, or a file of `dynpix export --to
            safetensors`. Names that ship come first: ``./boundaries`` is a folder.
        stage: Of a workdir: the stage whose end is opened, or "STAGE:STEP" (default: the newest checkpoint).
        overrides: Changes of config values as --set takes them, such as
            ``["execution.implementation=gather"]``.

    Raises:
        UserError: No such network, or none that this version can run.
    """
    path = find_network(name)
    run = network_run(path, overrides)
    if path.is_dir():
        return Predictor(run, open_run(run, path, stage))
    if stage is not None:
        raise UserError(f"{name}: holds one stage; stage= is for workdirs")
    return Predictor(run, open_weights(run, path, network_stage(path)))


def _as_batch(images: Any) -> tuple[np.ndarray, bool]:
    """uint8 (B, H, W, 3), and whether a single image (H, W, 3) was given."""
    if isinstance(images, str | Path):
        images = read_image(images, upright=True)
    elif hasattr(images, "convert"):  # Pillow's
        images = as_rgb(images)
    expected = "expected uint8 RGB (H, W, 3) or (B, H, W, 3)"
    try:
        array = np.asarray(images)
    except ValueError:  # a list of images that are no batch
        raise ValueError(f"images: {expected}, got a list of images of different sizes") from None
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"images: {expected}, got {array.dtype} {array.shape}")
    return (array, False) if array.ndim == 4 else (array[None], True)
