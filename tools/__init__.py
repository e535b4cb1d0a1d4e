"""Programs that prepare data by hand, and pages: no part of training or serving, and not in the wheel."""
