"""Confidence Adaptive Anytime Pixel-Level Recognition (Liu, Darrell and Shelhamer, ICLR 2022)."""
