"""Tiny dense and mixture-of-experts decoders, and a batch for them."""

import itertools
from dataclasses import replace

import torch

from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM

TINY = ModelConfig(vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                   head_dim=8, intermediate_size=40, max_position_embeddings=64)
TINY_MOE = replace(TINY, use_moe=True, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16,
                   router_aux_loss_coef=0.1)

_PLAIN = replace(TINY, qk_norm=False)
FAMILIES = {
    "qwen2": replace(_PLAIN, attention_bias="qkv"),
    "mistral": replace(_PLAIN, sliding_window=5, tie_word_embeddings=False),
    "smollm3": replace(_PLAIN, layers_without_rope=(1,), sliding_window=7, full_attention_layers=(2,)),
    "gpt2": replace(_PLAIN, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu", positions="learned",
                    num_key_value_heads=4),
    "dynamic": replace(_PLAIN, rope_scaling=RopeScaling("dynamic", 3.0, original_max_position_embeddings=8)),
    "minimind2_moe": replace(TINY_MOE, qk_norm=False, num_shared_experts=2, norm_topk_prob=True),
}
"""Each computes something that the others do not. Windows are shorter than most documents."""


def build(config: ModelConfig, dtype: torch.dtype = torch.float32, std: float = 0.3) -> MiniMindForCausalLM:
    """Returns a model with weights large enough for every part to affect the result."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(float(parameter.dim() == 1), std)
    return model


def random_batch(lengths: list[int], vocab_size: int = 61) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    torch.manual_seed(1)
    input_ids = torch.randint(0, vocab_size, (sum(lengths),))
    labels = torch.randint(0, vocab_size, (sum(lengths),))
    labels[torch.rand(len(labels)) < 0.4] = IGNORE_INDEX
    return input_ids, labels, (0, *itertools.accumulate(lengths))
