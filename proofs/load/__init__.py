"""Clients, well and badly behaved, that put load on a server of models. `serve_load.py` uses them."""
