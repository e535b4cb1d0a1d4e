"""Level 5: the one training loop with its state, optimizer rules, checkpoints and writers."""
