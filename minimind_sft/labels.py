"""The label that data and model agree on for a position without supervision."""

IGNORE_INDEX = -100
"""The label of a position that is not supervised."""
