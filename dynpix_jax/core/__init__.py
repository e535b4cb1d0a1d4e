"""Level 0: errors, strict configs, named random streams, rules over trees.

`errors`, `configs`, `locks`, `memory` and `text` are free of jax: data loading uses them in worker processes.
"""
