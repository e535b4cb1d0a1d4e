"""Level 5: evaluators that turn predictions into the numbers of a paper's table."""
