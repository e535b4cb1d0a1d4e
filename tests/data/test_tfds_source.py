"""TFDS: records written as TFDS writes them, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import naming
from tensorflow_datasets.proto import tf_example_pb2

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import Source
from dynpix_jax.data.sources import build_source
from tests.data.spec_check import check_source


def build(root: Path, dataset: str, split: str) -> Source:
    return build_source({"name": "tfds", "root": str(root), "dataset": dataset}, split)


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1] if picture.shape[-1] == 3 else picture)[1].tobytes()


def write(root: Path, name: str, split: str, examples: list[dict[str, object]]) -> None:
    """One shard of tf.train.Example records, and the JSON files beside it."""
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    folder = Path(builder.data_path)
    folder.mkdir(parents=True)
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=builder.name, split=split, filetype_suffix="array_record"
    )
    path = folder / f"{builder.name}-{split}.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        proto = tf_example_pb2.Example()
        for key, value in example.items():
            if isinstance(value, bytes):
                proto.features.feature[key].bytes_list.value.append(value)
            else:
                proto.features.feature[key].float_list.value.extend(np.ravel(value).tolist())
        writer.write(proto.SerializeToString())
    writer.close()
    info = tfds.core.SplitInfo(
        name=split, shard_lengths=[len(examples)], num_bytes=path.stat().st_size, filename_template=template
    )
    builder.info.set_splits(tfds.core.splits.SplitDict([info]))
    builder.info.write_to_directory(folder)


@pytest.fixture
def images() -> list[np.ndarray]:
    return [np.full((1024, 2048, 3), (200, 10, number), np.uint8) for number in range(2)]


def test_cityscapes(tmp_path: Path, images: list[np.ndarray]) -> None:
    labels = np.zeros((1024, 2048, 1), np.uint8)
    labels[0, :4, 0] = 7, 33, 255, 9
    examples = [
        {"image_id": b"a", "image_left": png(image), "segmentation_label": png(labels)} for image in images
    ]
    write(tmp_path, "cityscapes/semantic_segmentation", "validation", examples)
    source = build(tmp_path, "cityscapes", "val")
    assert len(source) == 2
    assert source.name(1) == "val_00001"
    check_source(source)
    element = source[1]
    np.testing.assert_array_equal(element["image"], images[1])
    np.testing.assert_array_equal(element["segmentation"][0, :5], [0, 18, 255, 255, 255])
    assert element["segmentation"].dtype == np.int32
    assert source.spec.fields["segmentation"].classes[0] == "road"
    with pytest.raises(
        UserError, match=r"split train in array_record files, has the splits validation; prep"
    ):
        build(tmp_path, "cityscapes", "train")


def test_nyu_depth(tmp_path: Path) -> None:
    depth = np.full((480, 640), 2.5, np.float16)
    depth[0, 0] = 0
    image = np.full((480, 640, 3), (9, 8, 7), np.uint8)
    write(tmp_path, "nyu_depth_v2", "validation", [{"image": png(image), "depth": depth}])
    element = build(tmp_path, "nyu_depth_v2", "val")[0]
    np.testing.assert_array_equal(element["image"], image)
    np.testing.assert_array_equal(element["depth"], depth.astype(np.float32))
    assert element["depth"].dtype == np.float32


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nyu_depth_v2.*is not there; prepare it.*download_and_prepare"):
        build(tmp_path, "nyu_depth_v2", "val")
    with pytest.raises(UserError, match=r"config\.data\.source\.dataset: "):
        build(tmp_path, "nyu", "val")
