"""BSDS500 boundaries, read from the official layout.

Layout: ROOT/images/{train,val,test}/ID.jpg and ROOT/groundTruth/{train,val,test}/ID.mat, where ROOT is the
`data` folder of the published archive; its parents (`BSDS500`, `BSR`) are accepted as well. Each .mat holds a
cell array `groundTruth`, one cell an annotator, with fields `Boundaries` (H, W) in {0, 1} and `Segmentation`
(H, W) from 1. The papers train on the split `trainval`: the 200 images of train, then the 100 of val.

Source: Arbelaez, Maire, Fowlkes, Malik, "Contour Detection and Hierarchical Image Segmentation", TPAMI 2011.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import BOUNDARIES, Element, check_index
from dynpix_jax.data.base import FileSource
from dynpix_jax.data.files import same_size
from dynpix_jax.data.images import read_image
from dynpix_jax.data.matlab import read_mat

FIELDS = {"boundaries": dataclasses.replace(BOUNDARIES, units="share of annotators")}
WHERE_TO_GET = (
    "get BSR_bsds500.tgz from "
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html "
    "(mirror: https://github.com/BIDS/BSDS500) and unpack it there"
)


@dataclasses.dataclass(frozen=True)
class BSDS500Config:
    """Options of the source.

    Attributes:
        root: The archive's `data` folder, or one of its parents.
        label: `consensus`: 1 where enough annotators mark the pixel, 0 where none does, -1 (ignore) between;
            `soft`: the mean over the annotators.
        consensus: Up to 1: the share of the annotators that is enough (1 = all; 0.3 means 2 of 5); above 1:
            their number, a whole one.
    """

    root: str
    label: Literal["consensus", "soft"] = "consensus"
    consensus: float = 0.3

    def __post_init__(self) -> None:
        if not self.consensus > 0 or (self.consensus > 1 and self.consensus != int(self.consensus)):
            raise ValueError(
                f"consensus: {self.consensus:g}; expected a share of the annotators in (0, 1] "
                "or a whole number above 1"
            )

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {} if self.label == "consensus" else {"consensus": "it is of label 'consensus'"}


class BSDS500(FileSource[BSDS500Config]):
    """Elements: `image` uint8 (H, W, 3), `boundaries` float32 (H, W) in [0, 1] or -1, `index` int64."""

    Config = BSDS500Config
    splits = ("train", "val", "trainval", "test")
    data_set = "bsds500"
    where_to_get = WHERE_TO_GET
    licence = "BSDS500: non-commercial research and education; cite Arbelaez et al., TPAMI 2011"
    labels = FIELDS

    def find(self) -> list[str]:
        folders = ("train", "val") if self.split == "trainval" else (self.split,)
        self.root = _find_data(self.root, folders)
        self._images = [
            path for folder in folders for path in self.files(self.root / "images" / folder, "*.jpg")
        ]
        return [path.stem for path in self._images]

    def truth_path(self, index: int) -> Path:
        """The annotators' .mat file of element `index`."""
        folder = self._images[check_index(self, index)].parent.name
        return self.root / "groundTruth" / folder / f"{self.name(index)}.mat"

    def annotators(self, index: int) -> list[np.ndarray]:
        """Each annotator's boundaries, bool (H, W): the ground truth of the benchmark."""
        return read_boundaries(self.truth_path(index))

    def element_files(self, index: int) -> tuple[Path, Path]:
        return self._images[index], self.truth_path(index)

    def read(self, index: int) -> Element:
        path = self._images[index]
        image = read_image(path)
        annotators = self.annotators(index)
        same_size(self.data_set, path, image.shape, self.truth_path(index), annotators[0].shape)
        votes = np.asarray(np.sum(np.stack(annotators), axis=0, dtype=np.int32))
        labels = vote_labels(votes, len(annotators), self.config)
        return {"image": image, "boundaries": labels}


def vote_labels(votes: np.ndarray, annotators: int, config: BSDS500Config) -> np.ndarray:
    """Turns the number of annotators that mark each pixel into labels: float32, same shape."""
    if config.label == "soft":
        return (votes / annotators).astype(np.float32)
    # The count may exceed the annotators of an image: then all of them are enough, or it would have no
    # positives.
    enough = min(config.consensus, annotators) if config.consensus > 1 else config.consensus * annotators
    labels = np.where(votes >= enough - 1e-6, 1.0, -1.0)
    labels[votes == 0] = 0.0
    return labels.astype(np.float32)


def read_boundaries(path: str | Path) -> list[np.ndarray]:
    """Reads the annotators' boundary maps, bool (H, W) each, of a BSDS .mat file.

    Raises:
        UserError: Missing or corrupt file, or one without `groundTruth{k}.Boundaries`.
    """
    path = Path(path)
    truth = read_mat(path, ("groundTruth",), "bsds500", WHERE_TO_GET)["groundTruth"]
    try:
        cells = [np.asarray(cell["Boundaries"][0, 0]) for cell in truth.ravel()]
    except (KeyError, IndexError, ValueError, TypeError):
        cells = []
    if not cells or any(cell.ndim != 2 or cell.shape != cells[0].shape for cell in cells):
        raise UserError(f"no groundTruth{{k}}.Boundaries maps of one size in {path}")
    if any(cell.dtype.kind not in "buif" or not np.isfinite(cell).all() for cell in cells):
        raise UserError(f"boundaries that are not finite numbers in {path}")
    return [cell != 0 for cell in cells]


def _find_data(root: Path, splits: tuple[str, ...]) -> Path:
    """The folder that holds images/ and groundTruth/, each with a folder for every split."""
    for data in (root, root / "data", root / "BSDS500" / "data", root / "BSR" / "BSDS500" / "data"):
        if (data / "images").is_dir():
            for split in splits:
                for folder in (data / "images" / split, data / "groundTruth" / split):
                    if not folder.is_dir():
                        raise UserError(f"bsds500: folder not found: {folder.absolute()}; {WHERE_TO_GET}")
            return data
    raise UserError(
        f"bsds500: {root.absolute()} holds neither data/images nor BSDS500/data/images; {WHERE_TO_GET}"
    )
