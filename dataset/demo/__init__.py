"""What the bundled demo data says; `make_demo.py` writes it out. One module per family of kinds."""
