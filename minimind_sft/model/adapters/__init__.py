"""Adapters as files: this project's, PEFT's and MiniMind's, applied to a model and merged into it."""
