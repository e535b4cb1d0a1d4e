"""Several sources as one: what an element lacks is ignored, and a batch is of one of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import EvaluationConfig
from dynpix_jax.core.source import Source
from dynpix_jax.data.loader import make_loader
from dynpix_jax.data.sources import build_source, declared_spec, read_source
from dynpix_jax.evaluation.scorers import make_scorer, truth
from dynpix_jax.tasks import build as build_task
from tests.data.spec_check import check_source

EDGES, CLASSES = (3, 4), (4, 6)


@pytest.fixture
def sections(tmp_path: Path) -> tuple[dict, dict]:
    """Three images of BSDS500 with boundaries (two annotators), five of CamVid with classes."""
    boundaries, classes = tmp_path / "bsds", tmp_path / "camvid"
    for folder in (boundaries / "images/train", boundaries / "groundTruth/train", classes / "train"):
        folder.mkdir(parents=True)
    (classes / "trainannot").mkdir()
    for number in range(3):
        cv2.imwrite(str(boundaries / "images/train" / f"{number}.jpg"), np.zeros((*EDGES, 3), np.uint8))
        cells = np.empty((1, 2), object)
        for k in range(2):
            mask = np.zeros(EDGES, np.uint8)
            mask[:, k] = 1
            cells[0, k] = {"Boundaries": mask, "Segmentation": mask}
        savemat(boundaries / "groundTruth/train" / f"{number}.mat", {"groundTruth": cells})
    for number in range(5):
        cv2.imwrite(str(classes / "train" / f"{number}.png"), np.zeros((*CLASSES, 3), np.uint8))
        cv2.imwrite(str(classes / "trainannot" / f"{number}.png"), np.full(CLASSES, number, np.uint8))
    return {"name": "bsds500", "root": str(boundaries)}, {"name": "camvid", "root": str(classes)}


def joint(sections: tuple[dict, ...], **options: object) -> Source:
    return build_source({"name": "joint", "sources": sections, **options}, "train")


def test_elements(sections):
    source = joint(sections)
    check_source(source)
    assert len(source) == 8
    assert (source.name(2), source.name(3)) == ("bsds500/2", "camvid/0")
    first, last = source[0], source[7]
    assert first["boundaries"].shape == first["segmentation"].shape == EDGES
    assert (first["segmentation"] == 255).all()
    np.testing.assert_array_equal(first["boundaries"][0], [1, 1, 0, 0])
    assert last["boundaries"].shape == CLASSES
    assert (last["boundaries"] == -1).all()
    assert (last["segmentation"] == 4).all()
    assert last["index"] == 7
    assert len(source.annotators(0)) == 2
    assert source.annotators(7) == []


def test_it_is_declared_by_its_parts_without_their_files(sections, tmp_path):
    opened = joint(sections)
    nowhere = tuple(dict(section, root=str(tmp_path / "none")) for section in sections)
    settings = read_source({"name": "joint", "sources": nowhere}, "s", "train")
    assert declared_spec(settings) == opened.spec
    for licence in ("Arbelaez", "Brostow"):
        assert licence in opened.spec.licence


def test_batches_are_of_one_part(sections):
    """In turns by weight, all elements of a part before any comes again, and the same again."""
    source = joint(sections, weights=(1.0, 3.0))
    augment = GeometryRanges(crop=(4, 4))
    loader = make_loader(source, batch_size=1, seed=3, train=True, augment=augment)
    order = [int(batch["index"][0]) for batch in islice(loader, 20)]
    edges, classes = [i for i in order if i < 3], [i for i in order if i >= 3]
    assert (len(edges), len(classes)) == (5, 15)
    assert set(edges[:3]) == {0, 1, 2}
    assert set(classes[:5]) == set(classes[5:10]) == {3, 4, 5, 6, 7}
    again = make_loader(source, batch_size=1, seed=3, train=True, augment=augment)
    assert [int(batch["index"][0]) for batch in islice(again, 20)] == order
    for batch in islice(make_loader(source, batch_size=2, seed=0, train=True, augment=augment), 8):
        assert len(set(batch["index"] < 3)) == 1
        assert (batch["boundaries"] >= 0).any() != (batch["segmentation"] != 255).any()


def test_scores_count_what_is_labelled(sections):
    source = joint(sections)
    settings = EvaluationConfig(thresholds=1, workers=0, nms=False)
    task = build_task("boundaries", {}, "")
    scorer = make_scorer(task, source, len(source), settings)
    for element in source:
        batch = {"boundaries": element["boundaries"][None], "valid": np.array([True])}
        scorer.add(np.clip(element["boundaries"][None], 0, 1), batch)
    names: list[str] = []
    scores = scorer.finish([scorer.sums(lambda count, name: names.append(name))])
    assert names == ["bsds500/0", "bsds500/1", "bsds500/2"]
    assert 0 < scores.numbers["ods"] <= 1
    np.testing.assert_allclose(truth(task, source, 0)[0], [0.5, 0.5, 0, 0])
    assert (truth(task, source, 7) == -1).all()
    nothing = make_scorer(task, source, len(source), settings)
    nothing.add(
        np.zeros((1, *CLASSES)), {"boundaries": source[7]["boundaries"][None], "valid": np.array([True])}
    )
    with pytest.raises(UserError, match="boundaries: no labelled pixel"):
        nothing.finish([nothing.sums()])


def test_mistakes(sections):
    with pytest.raises(UserError, match=r"sources: \(\); expected the sections"):
        joint(())
    with pytest.raises(UserError, match=r"weights: \(1\.0,\); expected a positive number for each"):
        joint(sections, weights=(1.0,))
    with pytest.raises(UserError, match=r"sources\[1\].rooot: unknown key; did you mean 'root'"):
        joint((sections[0], {"name": "camvid", "rooot": ""}))
    with pytest.raises(UserError, match="segmentation of camvid and of scenes are not the same label"):
        joint((sections[1], {"name": "scenes", "fields": ("segmentation",)}))
