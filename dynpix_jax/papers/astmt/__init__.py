"""Attentive Single-Tasking of Multiple Tasks (Maninis, Radosavovic and Kokkinos, CVPR 2019)."""
