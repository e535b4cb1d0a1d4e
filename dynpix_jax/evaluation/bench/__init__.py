"""What computing at active positions only costs, measured against computing everywhere.

``conv.py`` a perforated convolution, ``bottleneck.py`` a gated bottleneck, ``model.py`` a whole network;
``torch_conv.py`` the same convolution in PyTorch.
"""
