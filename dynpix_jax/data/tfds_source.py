"""Data sets that TensorFlow Datasets has prepared as ArrayRecord files: Cityscapes and NYU Depth v2.

Read as `tfds.data_source` does, which needs no TensorFlow. What TFDS calls `nyu_depth_v2` is another
selection than `nyuv2`: 47584 video frames and the 654 test images, with depth only. Of Cityscapes it has
images and labels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.source import DEPTH, IMAGE, INDEX, Element, SourceSpec, check_index, segmentation
from dynpix_jax.data import cityscapes, nyuv2
from dynpix_jax.data.cityscapes import label_to_train_ids

SPLITS = ("train", "val", "test")
BUILDERS = {"cityscapes": "cityscapes/semantic_segmentation", "nyu_depth_v2": "nyu_depth_v2"}
_TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """Options of the source.

    Attributes:
        root: The `data_dir` of TFDS.
        dataset: Which of its data sets.
    """

    root: str
    dataset: Literal["cityscapes", "nyu_depth_v2"]


class Tfds:
    """Elements: `image` uint8 (H, W, 3), one label, `index` int64.

    Of cityscapes the label is `segmentation` int32 (H, W) in 0..18 or 255, of nyu_depth_v2 `depth` float32
    (H, W), metres, 0 = invalid.
    """

    Config = TfdsConfig
    splits = SPLITS

    def __init__(self, config: TfdsConfig, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"tfds has no split {split!r}; {suggest(split, SPLITS)}")
        self._dataset = config.dataset
        self._split = split
        # Imported here: it takes seconds, and the other sources do without.
        import tensorflow_datasets as tfds

        name = BUILDERS[config.dataset]
        builder = tfds.builder(name, data_dir=config.root, file_format="array_record")
        splits = sorted(builder.info.splits) if Path(builder.data_path).is_dir() else []
        if _TFDS_SPLITS[split] not in splits:
            there = f"has the splits {', '.join(splits)}" if splits else "is not there"
            raise UserError(
                f"tfds: {builder.data_path}, expected with the split {_TFDS_SPLITS[split]} in array_record "
                f"files, {there}; prepare it where TensorFlow is installed: tfds.builder({name!r}, "
                f"data_dir={config.root!r}, file_format='array_record').download_and_prepare()"
            )
        self._records: Any = builder.as_data_source(_TFDS_SPLITS[split])

    @property
    def spec(self) -> SourceSpec:
        """Fields `image`, `segmentation` or `depth`, `index`."""
        if self._dataset == "cityscapes":
            labels = {"segmentation": segmentation(cityscapes.CLASSES, cityscapes.PALETTE)}
            return SourceSpec(
                "cityscapes", {"image": IMAGE, **labels, "index": INDEX}, cityscapes.Cityscapes.licence
            )
        return SourceSpec(
            "nyu_depth_v2", {"image": IMAGE, "depth": DEPTH, "index": INDEX}, nyuv2.NYUv2.licence
        )

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """The place of the element, such as "val_00012": the records of NYU have no name."""
        return f"{self._split}_{check_index(self, index):05d}"

    def __getitem__(self, index: int) -> Element:
        index = check_index(self, index)
        record = self._records[index]
        if self._dataset == "cityscapes":
            ids = record["segmentation_label"][..., 0]
            labels = {"segmentation": label_to_train_ids(ids, f"tfds record {self.name(index)}")}
            image = record["image_left"]
        else:
            labels = {"depth": record["depth"].astype(np.float32)}
            image = record["image"]
        return {"image": image, **labels, "index": np.array(index, np.int64)}
