"""Weights become text: generation and chat."""
