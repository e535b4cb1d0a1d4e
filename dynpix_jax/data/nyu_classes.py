"""The 40 classes of NYUv2, of which SUN RGB-D has the first 37."""

from __future__ import annotations

# In the order of classMapping40.mat (Gupta, Arbelaez, Malik, CVPR 2013).
NYU40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "other structure", "other furniture", "other prop"),
)


def label_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first `count` colours of PASCAL VOC's label map, which the NYUv2 community uses, without black."""
    colours = []
    for label in range(1, count + 1):
        channels = [0, 0, 0]
        # Three bits of the label at a time become one bit of each channel, the most significant first.
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)


NYU40_PALETTE = label_colours(len(NYU40))
