"""Weights are judged: losses, answers, comparisons."""
