"""Networks that turn an image into feature maps, each telling the channels and stride of its stages."""
