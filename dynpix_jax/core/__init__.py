"""Floor 0: errors, strict configs, named random streams, rules over trees.

`errors` and `configs` are free of jax, so that data loading can use them in worker processes.
"""
