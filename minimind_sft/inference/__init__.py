"""Turns weights into text: generation, chat, scoring and validation loss."""
