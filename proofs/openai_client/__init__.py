"""Requests that OpenAI's client makes of the server, one function each."""
