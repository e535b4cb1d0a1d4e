"""Floor 5: reading pretrained weights of other libraries and fitting them to our parameter names."""
