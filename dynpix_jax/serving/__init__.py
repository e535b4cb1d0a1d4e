"""Trained networks outside of training: opening them by name, workdir or file, predicting, exporting.

`dynpix_jax.load` is `serving.predictor.load`.
"""
