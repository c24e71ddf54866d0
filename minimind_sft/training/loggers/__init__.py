"""Copies of the metrics in other programs: Weights & Biases, SwanLab, TensorBoard."""
