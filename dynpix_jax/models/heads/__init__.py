"""Networks that turn feature maps into per-pixel predictions; shared by systems."""
