"""The 40 classes of NYUv2, of which SUN RGB-D has the first 37."""

from __future__ import annotations

from dynpix_jax.data.voc2012 import palette

# In the order of classMapping40.mat (Gupta, Arbelaez, Malik, CVPR 2013).
NYU40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "other structure", "other furniture", "other prop"),
)

# PASCAL VOC's colours, which the NYUv2 community uses, without black.
NYU40_PALETTE = palette(len(NYU40) + 1)[1:]
