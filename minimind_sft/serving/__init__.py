"""Serves a model: an OpenAI-compatible application and a chat page."""
