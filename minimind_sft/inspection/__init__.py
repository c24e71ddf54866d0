"""Reports what a run would learn from its data, and what is wrong with them."""
