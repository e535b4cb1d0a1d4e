"""A data set of one's own: ROOT/SPLIT/NAME.jpg, and instance ids in ROOT/SPLIT/NAME.png, 255 = unknown.

data.train.source = dict(name="my_data:Things", split="train", root="data/things")
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynpix_jax.core.source import FieldSpec
from dynpix_jax.data.base import LabelledImages


@dataclass(frozen=True)
class ThingsConfig:
    root: str


class Things(LabelledImages[ThingsConfig]):
    Config = ThingsConfig
    splits = ("train", "val")
    data_set = "things"
    where_to_get = "expected NAME.jpg and NAME.png in a folder for each split"
    licence = "our own"
    labels = {"instances": FieldSpec("label", (None, None), "int32", ignore=255)}  # noqa: RUF012

    def find(self) -> list[str]:
        return [path.stem for path in self.files(self.root / self.split, "*.jpg")]

    def image_file(self, index: int) -> Path:
        return self.root / self.split / f"{self.names[index]}.jpg"

    def label_file(self, index: int, field: str) -> Path:
        return self.root / self.split / f"{self.names[index]}.png"

    def decode(self, field: str, path: Path) -> np.ndarray:
        return self.read_ids(path, last=255)
