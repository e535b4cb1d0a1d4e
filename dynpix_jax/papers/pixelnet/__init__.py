"""PixelNet (Bansal et al., 2016)."""
