"""Floor 3: backbones, heads and systems, and `build`, which makes a system from a config section."""
