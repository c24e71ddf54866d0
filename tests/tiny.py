"""A tiny model and tiny data for tests of training."""

import numpy as np

from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.example import make_example
from minimind_sft.model.config import ModelConfig

TINY = ModelConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                   intermediate_size=24, max_position_embeddings=128)
TINY_MOE = ModelConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, intermediate_size=24, max_position_embeddings=128, use_moe=True,
                       router_aux_loss_coef=0.1)


def random_documents(count: int, seed: int = 0, longest: int = 20) -> ExampleDataset:
    """Returns random documents of 3 to `longest` tokens , supervised at random but always at the end."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        length = int(random.integers(3, longest + 1))
        supervised = random.random(length) < 0.5
        supervised[-1] = True
        samples.append([make_example(random.integers(0, TINY.vocab_size, length), supervised)])
    return ExampleDataset(samples)
