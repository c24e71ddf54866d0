"""Fast implementations of the model's plain formulas.

Each file is about one formula and names it: its plain twin in layers.py, attention.py or moe.py, which the tests
compare it with, in values and gradients. selection.py decides which implementation runs.
"""
