"""Programs that prepare data by hand: no part of training or serving, and not in the wheel."""
