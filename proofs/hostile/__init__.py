"""Kinds of hostile input, a module each. `hostile_inputs.py` tries them on the programs."""
