"""Tiny models with random weights, one for each family that a model can be exported in."""

from dataclasses import replace
from pathlib import Path

import torch

from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import Weights

QWEN3 = ModelConfig(vocab_size=6400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    head_dim=16, intermediate_size=64, max_position_embeddings=512)
LLAMA = replace(QWEN3, qk_norm=False, head_dim=8, rope_theta=1e5, rms_norm_eps=1e-5)
CONFIGS = {
    "qwen3": QWEN3,
    "qwen3_moe": replace(QWEN3, use_moe=True, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                         norm_topk_prob=True),
    "llama": LLAMA,
    "qwen2": replace(LLAMA, attention_bias="qkv", rms_norm_eps=1e-6, tie_word_embeddings=False),
    "mistral": replace(LLAMA, sliding_window=8, tie_word_embeddings=False),
    "gpt2": replace(LLAMA, num_key_value_heads=4, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu",
                    positions="learned", intermediate_size=128),
    "smollm3": replace(LLAMA, layers_without_rope=(1,), num_attention_heads=2, head_dim=16),
}
"""By the family in whose layout the model is exported: the first that can hold it."""

UNNORMALISED = replace(CONFIGS["qwen3_moe"], norm_topk_prob=False)
LONG = replace(LLAMA, rope_scaling=RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=64))


def random_weights(config: ModelConfig) -> Weights:
    """Returns random weights, large enough for every part to matter."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(parameter.dim() == 1 and name.endswith("weight")), 0.2)
    state = model.state_dict()
    return Weights(Path("random"), config, {name: state[name] for name in tensor_shapes(config)}, None)
