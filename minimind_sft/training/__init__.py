"""A loss becomes better weights."""
