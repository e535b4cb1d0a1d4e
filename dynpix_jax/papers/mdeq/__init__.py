"""Multiscale Deep Equilibrium Models (Bai, Koltun and Kolter, NeurIPS 2020)."""
