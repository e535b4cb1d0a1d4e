"""Floor 3: one file a task, with its target, loss, metric and decoding."""
