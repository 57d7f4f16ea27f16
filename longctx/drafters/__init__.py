"""Which tokens may come next: one file, one method."""
