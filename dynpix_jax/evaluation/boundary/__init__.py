"""The BSDS500 boundary benchmark: non-maximum suppression, thinning, exact matching, ODS / OIS / AP.

scores = evaluate_boundaries(((name, soft_map) for ...), {name: [annotator_mask, ...]})
scores.ods, scores.ois, scores.ap
"""

from dynpix_jax.data.nms import non_maximum_suppression, orientation, suppress, triangle_filter
from dynpix_jax.data.thin import thin
from dynpix_jax.evaluation.boundary.curve import (
    BoundaryScores,
    CurveScore,
    ImageCounts,
    ImageScore,
    average_precision,
    best_score,
    f_measure,
    recall_precision,
    summarize,
)
from dynpix_jax.evaluation.boundary.evaluate import (
    GroundTruth,
    count_boundaries,
    evaluate_boundaries,
    evaluate_image,
    threshold_values,
)
from dynpix_jax.evaluation.boundary.match import Annotation, match_radius
from dynpix_jax.evaluation.boundary.saved import read_curve

__all__ = [
    "Annotation",
    "BoundaryScores",
    "CurveScore",
    "GroundTruth",
    "ImageCounts",
    "ImageScore",
    "average_precision",
    "best_score",
    "count_boundaries",
    "evaluate_boundaries",
    "evaluate_image",
    "f_measure",
    "match_radius",
    "non_maximum_suppression",
    "orientation",
    "read_curve",
    "recall_precision",
    "summarize",
    "suppress",
    "thin",
    "threshold_values",
    "triangle_filter",
]
