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

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import (
    DEPTH,
    IMAGE,
    INDEX,
    NORMALS,
    Element,
    FieldSpec,
    SourceSpec,
    check_index,
    segmentation,
)
from dynpix_jax.data.files import need_folder
from dynpix_jax.data.images import read_image, read_map
from dynpix_jax.data.matlab import read_mat
from dynpix_jax.data.multitask import BOUNDARIES, fit, picture_normals, read_names, unit_normals
from dynpix_jax.data.nyu_classes import NYU40, NYU40_PALETTE

SPLITS = ("train", "val")
WHERE_TO_GET = (
    "get NYUD_MT.tgz, which https://github.com/facebookresearch/astmt reads (its first address was "
    "https://data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz; "
    "https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch links to a later one), and unpack it"
)
LICENCE = "NYU Depth V2: research use; cite Silberman et al., ECCV 2012, and Maninis et al., CVPR 2019"
LABELS = ("segmentation", "boundaries", "depth", "normals")
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

    root: the folder NYUD_MT. fields: the labels to read, of `LABELS`.
    classes: 41 counts the background as a class, as ASTMT does; 40 ignores it, as most others do.
    """

    root: str
    fields: tuple[str, ...] = LABELS
    classes: Literal[41, 40] = 41

    def __post_init__(self) -> None:
        for field in self.fields:
            if field not in LABELS:
                raise ValueError(f"fields: unknown label {field!r}; {suggest(field, LABELS)}")


class NyudMultitask:
    """Elements: `image` uint8 (H, W, 3), the labels asked for, `index` int64.

    `segmentation` int32 (H, W) in 0..40 (or 0..39 and 255); `boundaries` float32 (H, W) in [0, 1]; `depth`
    float32 (H, W), metres, 0 = invalid; `normals` float32 (H, W, 3), zero = invalid.
    """

    Config = NyudMultitaskConfig
    splits = SPLITS

    def __init__(self, config: NyudMultitaskConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"nyud_multitask has no split {split!r}; {suggest(split, SPLITS)}")
        self._config = config
        self._root = need_folder(Path(config.root), "nyud_multitask", WHERE_TO_GET)
        self._names = read_names(self._root / "gt_sets" / f"{split}.txt", "nyud_multitask", WHERE_TO_GET)

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, the labels asked for, `index`."""
        known: dict[str, FieldSpec] = {
            "segmentation": segmentation(("background", *NYU40), ((0, 0, 0), *NYU40_PALETTE))
            if self._config.classes == 41
            else segmentation(NYU40, NYU40_PALETTE),
            "boundaries": BOUNDARIES,
            "depth": DEPTH,
            "normals": NORMALS,
        }
        labels = {name: known[name] for name in self._config.fields}
        return SourceSpec("nyud_multitask", {"image": IMAGE, **labels, "index": INDEX}, LICENCE)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The image's id, such as "0001"."""
        return self._names[check_index(self, index)]

    def __getitem__(self, index: int) -> Element:
        index = check_index(self, index)
        name = self._names[index]
        read = {
            "segmentation": self._segmentation,
            "boundaries": self._boundaries,
            "depth": self._depth,
            "normals": self._normals,
        }
        element = {"image": read_image(self._root / "images" / f"{name}.jpg")}
        shape = element["image"].shape
        element |= {field: fit(read[field](self._file(name, field)), shape) for field in self._config.fields}
        return element | {"index": np.array(index, np.int64)}

    def _file(self, name: str, field: str) -> Path:
        folder, suffixes = FILES[field]
        paths = [self._root / folder / f"{name}{suffix}" for suffix in suffixes]
        for path in paths:
            if path.is_file():
                return path
        raise UserError(
            f"nyud_multitask: file not found: {paths[0].absolute()}, nor {paths[1].name}; {WHERE_TO_GET}"
        )

    def _segmentation(self, path: Path) -> np.ndarray:
        if path.suffix == ".mat":
            ids = read_mat(path, ("segmentation",), "nyud_multitask", WHERE_TO_GET)["segmentation"]
        else:
            ids = read_map(path, "uint8", "nyud_multitask labels")
        ids = ids.astype(np.int32)
        if ids.min() < 0 or ids.max() > len(NYU40):
            raise UserError(
                f"nyud_multitask: {path} has the ids {ids.min()} to {ids.max()}; expected 0 to {len(NYU40)}"
            )
        return ids if self._config.classes == 41 else np.where(ids == 0, 255, ids - 1).astype(np.int32)

    def _boundaries(self, path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            return _read_npy(path, 2)
        return read_map(path, "uint8", "nyud_multitask edges").astype(np.float32) / np.float32(255)

    def _depth(self, path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            depth = _read_npy(path, 2)
        else:
            depth = read_mat(path, ("depth",), "nyud_multitask", WHERE_TO_GET)["depth"].astype(np.float32)
        return np.where(np.isfinite(depth), depth, 0.0).astype(np.float32)

    def _normals(self, path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            return unit_normals(_read_npy(path, 3))
        return unit_normals(picture_normals(read_image(path)))


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
