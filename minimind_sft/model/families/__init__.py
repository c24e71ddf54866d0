"""Translates models of other families: the names of their configuration's fields and of their tensors, both ways.

Each family is a file of about a page. registry.py lists them; family.py says what a family is.
"""
