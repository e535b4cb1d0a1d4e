"""Level 5: pictures of predictions, masks and ponder maps, and the HTML report."""
