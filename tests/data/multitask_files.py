"""Small folders in the layouts of the multi-task archives, with labels worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

SHAPE = (6, 8)


def write_pascal(root: Path) -> Path:
    """train: "a" with a person and VOC labels, "b" without, its classes in the other folder, and no val."""
    lists = root / "ImageSets" / "Context"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    folders = (
        *("JPEGImages", "pascal-context/trainval", "semseg/VOC12", "semseg/pascal-context"),
        *("human_parts", "normals_distill", "sal_distill"),
    )
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for name, kind in (("a", "VOC12"), ("b", "pascal-context")):
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), np.full((*SHAPE, 3), 90, np.uint8))
        context = np.full(SHAPE, 284, np.uint16)  # a person, which NYUv2 has too
        context[:, 4:] = 187  # grass, which it has not
        savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": context})
        classes = np.zeros(SHAPE, np.uint8)
        classes[:, :4], classes[0] = 15, 255
        cv2.imwrite(str(root / "semseg" / kind / f"{name}.png"), classes)
        # (0.6, 0, 0.8), whose z points away from the camera, stored as colours; in BGR.
        normals = np.zeros((*SHAPE, 3), np.uint8)
        normals[...] = (230, 128, 204)
        normals[1, 1] = 128  # no direction
        cv2.imwrite(str(root / "normals_distill" / f"{name}.png"), normals)
        saliency = np.full(SHAPE, 127, np.uint8)
        saliency[2:4, 2:4] = 128
        cv2.imwrite(str(root / "sal_distill" / f"{name}.png"), saliency)
    write_parts(
        root / "human_parts" / "a.mat", [(15, ["lebrow", "neck", "rlarm", "lfoot"]), (13, ["muzzle"])]
    )
    write_parts(root / "human_parts" / "b.mat", [(15, []), (12, ["tail"])])
    return root


def write_parts(path: Path, things: list[tuple[int, list[str]]]) -> None:
    """PASCAL-Part's structs: part k covers row k."""
    objects = []
    for kind, names in things:
        parts: Any = np.zeros((0, 0))
        if names:
            parts = np.zeros((1, len(names)), [("part_name", object), ("mask", object)])
            for row, name in enumerate(names):
                mask = np.zeros(SHAPE, np.uint8)
                mask[row] = 1
                parts[0, row] = name, mask
        objects.append(
            {"class": "x", "class_ind": float(kind), "mask": np.ones(SHAPE, np.uint8), "parts": parts}
        )
    array = np.zeros((1, len(objects)), [(key, object) for key in objects[0]])
    for column, one in enumerate(objects):
        array[0, column] = tuple(one.values())
    savemat(path, {"anno": {"imname": path.stem, "objects": array}})


def write_nyud(root: Path, *, later: bool = False) -> Path:
    """Images "0001" and "0002", train and val. later: in the form of the later archive."""
    for folder in ("gt_sets", "images", "edge", "segmentation", "normals", "depth"):
        (root / folder).mkdir(parents=True)
    for split, name in (("train", "0001"), ("val", "0002")):
        (root / "gt_sets" / f"{split}.txt").write_text(f"{name}\n")
        Image.new("RGB", (SHAPE[1], SHAPE[0]), (200, 20, 10)).save(
            root / "images" / f"{name}.jpg", quality=95
        )
        edges = np.zeros(SHAPE, np.uint8)
        edges[:, 3] = 255
        classes = np.full(SHAPE, 40, np.uint8)
        classes[0, :2] = 0, 1
        depth = np.full(SHAPE, 2.5, np.float32)
        depth[0, 0] = 0
        normals = np.zeros((*SHAPE, 3), np.float32)
        normals[..., 1], normals[..., 2] = -0.6, -0.8
        if later:
            np.save(root / "edge" / f"{name}.npy", (edges / 255)[..., None])
            cv2.imwrite(str(root / "segmentation" / f"{name}.png"), classes)
            np.save(root / "depth" / f"{name}.npy", depth)
            np.save(root / "normals" / f"{name}.npy", normals)
            continue
        cv2.imwrite(str(root / "edge" / f"{name}.png"), edges)
        savemat(root / "segmentation" / f"{name}.mat", {"segmentation": classes})
        savemat(root / "depth" / f"{name}.mat", {"depth": depth})
        colours = np.rint(127.5 * (normals + 1)).astype(np.uint8)
        Image.fromarray(colours).save(root / "normals" / f"{name}.jpg", quality=95)
    return root


def write_fsv(root: Path) -> Path:
    """Two frames of train; test lists three, of which one is there."""
    (root / "gt_sets").mkdir(parents=True)
    (root / "gt_sets" / "gta_train.txt").write_text("001/0000\n001/0001\n")
    (root / "gt_sets" / "gta_test.txt").write_text("002/0000\n002/0001\n002/0002\n")
    for split, names in (("train", ("001/0000", "001/0001")), ("test", ("002/0000",))):
        for name in names:
            base = root / f"gta_{split}" / name
            base.parent.mkdir(parents=True, exist_ok=True)
            kinds = np.zeros((*SHAPE, 3), np.uint8)
            kinds[0, :, 0] = range(8)
            disparity = np.zeros((*SHAPE, 3), np.uint8)
            disparity[1, :3] = (1, 0, 0), (0, 32, 0), (0, 0, 1)
            albedo = np.full((*SHAPE, 3), (255, 51, 0), np.uint8)
            photo = np.full((*SHAPE, 3), (10, 20, 200), np.uint8)
            for end, values in (("final", photo), ("albedo", albedo), ("disparity", disparity)):
                Image.fromarray(values).save(f"{base}_{end}.webp", lossless=True)
            Image.fromarray(kinds).save(f"{base}_object_id.png")
    return root
