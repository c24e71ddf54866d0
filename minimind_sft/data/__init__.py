"""Turns rows of JSON into batches."""
