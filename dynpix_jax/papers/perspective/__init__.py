"""Recurrent Scene Parsing with Perspective Understanding in the Loop (Kong and Fowlkes, CVPR 2018)."""
