"""A row of JSON becomes a batch."""
