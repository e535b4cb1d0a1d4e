"""A local web page to click the canonical points of Stanford 2D-3D-S panoramas."""
