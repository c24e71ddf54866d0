"""Writes weights, tokenizer and chat template in the formats of other programs, and reads back what it wrote."""
