"""All measuring programs. `dynpix bench NAME` runs one; each is a file with its arguments and an example.

Computing at active positions only, against computing everywhere (``timed.py`` times programs in turn):

- ``conv.py``: a perforated convolution.
- ``bottleneck.py``: PAG's gated bottleneck.
- ``pooling.py``: the five branches of recurrent scene parsing.
- ``model.py``: the whole network of a config.
- ``break_even.py``: from which density on it pays.
- ``row_costs.py``: the residual blocks of HRNet's branches.
- ``runtimes.py``: networks in other runtimes.
- ``soak.py``: training while its processes, disk and files are harmed.
- ``device.py``: on an accelerator, whether results are right and how fast they come.

Claims of papers:

- ``budgets.py``: prediction in steps against the clock.
- ``curves.py``: accuracy against MACs.
- ``pixelnet_sampling.py``: sampled training steps against dense ones.

``arg_specs.py`` lists the papers' shapes and ``masks.py`` makes masks; tests use both, too.
"""
