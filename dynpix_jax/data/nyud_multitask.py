"""NYUv2 with four tasks, read from the archive of "Attentive Single-Tasking of Multiple Tasks" (NYUD_MT).

Layout: ROOT/gt_sets/{train,val}.txt, one ID a line; ROOT/images/ID.jpg; and
  boundaries    ROOT/edge/ID.png, grey, 255 = boundary; or ID.npy
  segmentation  ROOT/segmentation/ID.mat, `segmentation`: 0 = background, 1 to 40; or ID.png
  normals       ROOT/normals/ID.jpg, colours of components; or ID.npy, the components
  depth         ROOT/depth/ID.mat, `depth` in metres, 0 = invalid; or ID.npy
The second form of each file is that of the archive that goes with Vandenhende et al., "Multi-task learning
for dense prediction tasks". 795 and 654 images of 480 x 640 pixels.

Source: Maninis, Radosavovic, Kokkinos, CVPR 2019; from NYU Depth V2 (Silberman et al., ECCV 2012), boundaries
and classes of Gupta, Arbelaez, Malik, CVPR 2013, normals of Ladicky, Zeisl, Pollefeys, ECCV 2014.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import BOUNDARIES, DEPTH, NORMALS, FieldSpec, segmentation
from dynpix_jax.data.base import LabelledImages, check_fields, ignore_zero
from dynpix_jax.data.files import read_names
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import read_mat
from dynpix_jax.data.multitask import LEAST_LENGTH, picture_normals, unit_normals
from dynpix_jax.data.nyu_classes import NYU40, NYU40_PALETTE

# Field -> its folder, and the ends of its files in the two archives.
FILES = {
    "segmentation": ("segmentation", (".mat", ".png")),
    "boundaries": ("edge", (".png", ".npy")),
    "depth": ("depth", (".mat", ".npy")),
    "normals": ("normals", (".jpg", ".npy")),
}


@dataclasses.dataclass(frozen=True)
class NyudMultitaskConfig:
    """Options of the source.

    Attributes:
        root: The folder NYUD_MT.
        fields: The labels to read, names of `FILES`.
        classes: 41 counts the background as a class, as ASTMT does; 40 ignores it, as most others do.
        valid_normals: ``long``: pixels whose stored normal is longer than .5; the colour of no direction, 128
            of each, is nearly zero. ``astmt``: all, as released: that colour is a direction, too.
    """

    root: str
    fields: tuple[str, ...] = tuple(FILES)
    classes: Literal[41, 40] = 41
    valid_normals: Literal["long", "astmt"] = "long"

    def __post_init__(self) -> None:
        check_fields(self.fields, FILES)

    def unread(self) -> dict[str, str]:
        """Options of labels that are not read."""
        options = {"classes": "segmentation", "valid_normals": "normals"}
        return {
            name: f"fields has no '{label}'" for name, label in options.items() if label not in self.fields
        }


class NyudMultitask(LabelledImages[NyudMultitaskConfig]):
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..40 (or 0..39 and 255); `boundaries` float32 (H, W) in [0, 1]; `depth`
    float32 (H, W), metres, 0 = invalid; `normals` float32 (H, W, 3), zero = invalid.
    """

    Config = NyudMultitaskConfig
    splits = ("train", "val")
    data_set = "nyud_multitask"
    where_to_get = (
        "get NYUD_MT.tgz, which https://github.com/facebookresearch/astmt reads (its first address was "
        "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz; "
        "https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch links to a later one), and unpack it"
    )
    licence = "NYU Depth V2: research use; cite Silberman et al., ECCV 2012, and Maninis et al., CVPR 2019"

    fits = True

    @property
    def labels(self) -> dict[str, FieldSpec]:
        with_background = self.config.classes == 41
        classes = ("background", *NYU40) if with_background else NYU40
        palette = ((0, 0, 0), *NYU40_PALETTE) if with_background else NYU40_PALETTE
        return {
            "segmentation": segmentation(classes, palette),
            "boundaries": BOUNDARIES,
            "depth": DEPTH,
            "normals": NORMALS,
        }

    def find(self) -> list[str]:
        return read_names(self.root / "gt_sets" / f"{self.split}.txt", self.data_set, self.where_to_get)

    def image_file(self, index: int) -> Path:
        return self.root / "images" / f"{self.names[index]}.jpg"

    def label_file(self, index: int, field: str) -> Path:
        folder, suffixes = FILES[field]
        paths = [self.root / folder / f"{self.names[index]}{suffix}" for suffix in suffixes]
        for path in paths:
            if path.is_file():
                return path
        raise UserError(
            f"nyud_multitask: file not found: {paths[0].absolute()}, nor {paths[1].name}; {self.where_to_get}"
        )

    def decode(self, field: str, path: Path) -> np.ndarray:
        if field == "segmentation":
            return self._segmentation(path)
        if field == "boundaries":
            if path.suffix == ".npy":
                return _read_npy(path, 2)
            return read_map(path, "uint8", "nyud_multitask edges").astype(np.float32) / np.float32(255)
        if field == "normals":
            npy = path.suffix == ".npy"
            stored = _read_npy(path, 3) if npy else picture_normals(read_image(path))
            return unit_normals(stored, 0.0 if self.config.valid_normals == "astmt" else LEAST_LENGTH)
        depth = _read_npy(path, 2) if path.suffix == ".npy" else self._mat(path, "depth")
        return np.where(np.isfinite(depth), depth, 0.0).astype(np.float32)

    def _segmentation(self, path: Path) -> np.ndarray:
        if path.suffix == ".mat":
            ids = self._mat(path, "segmentation").astype(np.int32)
            self.check_ids(ids, path, len(NYU40))
        else:
            ids = self.read_ids(path, len(NYU40))
        return ids if self.config.classes == 41 else ignore_zero(ids)

    def _mat(self, path: Path, variable: str) -> np.ndarray:
        return read_mat(path, (variable,), self.data_set, self.where_to_get)[variable]


def _read_npy(path: Path, dimensions: int) -> np.ndarray:
    """A float32 array; (H, W, 1) counts as (H, W)."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"nyud_multitask: corrupt .npy file ({error}): {path}") from None
    values = values.squeeze(-1) if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != dimensions:
        raise UserError(f"nyud_multitask: {path} has shape {values.shape}; expected {dimensions} dimensions")
    return values.astype(np.float32)
