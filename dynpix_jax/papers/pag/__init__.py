"""Pixel-wise Attentional Gating (Kong and Fowlkes, WACV 2019)."""
