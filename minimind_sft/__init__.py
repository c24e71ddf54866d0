"""A pretrained small language model and a file of conversations in, a chat model out."""

__version__ = "0.1.0"
