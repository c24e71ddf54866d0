"""Weights become words."""
