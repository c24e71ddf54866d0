"""A batch becomes a loss."""
