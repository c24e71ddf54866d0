"""Tiny models and prompts for tests of decoding and lowering."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from minimind_sft.inference.lowering import LoweredModel
from minimind_sft.inference.packed import best_pack
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kv_cache import CachedPieces, KVCache, Piece

VOCAB = 50
CONFIG = ModelConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, intermediate_size=40, max_position_embeddings=60)
CONFIGS = {
    "dense": CONFIG,
    "moe": replace(CONFIG, use_moe=True, num_experts_per_tok=2, moe_intermediate_size=16),
    "yarn": replace(CONFIG, rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=15)),
    "untied": replace(CONFIG, tie_word_embeddings=False),
    "qwen2": replace(CONFIG, qk_norm=False, attention_bias="qkv"),
    "window": replace(CONFIG, qk_norm=False, sliding_window=5, full_attention_layers=(1,)),
    "some layers rotate": replace(CONFIG, layers_without_rope=(1,), mlp_bias=True),
    "some layers rotate, no QK-norm": replace(CONFIG, qk_norm=False, layers_without_rope=(0,)),
    "gpt2": replace(CONFIG, qk_norm=False, attention_bias="all", mlp="gelu", mlp_bias=True, norm="layer",
                    positions="learned", num_key_value_heads=4),
    "shared experts": replace(CONFIG, qk_norm=False, use_moe=True, num_shared_experts=2, moe_intermediate_size=16),
}
DYNAMIC = replace(CONFIG, qk_norm=False, rope_scaling=RopeScaling("dynamic", 2.0, original_max_position_embeddings=6))
"""Beyond its original context, decoding with the cache and without differ, as they do in transformers."""

PROMPTS = [[7, 3, 9, 12], [1], [5, 5, 20, 31, 8, 2, 40, 11], [33, 4], [9, 8, 7, 6]]


def build(config: ModelConfig = CONFIG) -> MiniMindForCausalLM:
    """Returns a float64 model, so that rounding cannot change the best token."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.1 if name.endswith("bias") else 0.4)
    return model


half_needed = pytest.mark.skipif(best_pack(torch.zeros(1)) is None, reason="this PyTorch has no FBGEMM float16 product")
PRODUCTION = ModelConfig(vocab_size=200, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=176)


def steps(model: MiniMindForCausalLM | LoweredModel, prompts: list[list[int]], count: int = 5) -> list[torch.Tensor]:
    """Returns the logits of the prompts and of `count` steps, continuing every sequence with fixed tokens."""
    weight = model.embed_tokens.weight
    lengths = [len(prompt) for prompt in prompts]
    room = max(lengths) + count
    cache = KVCache(model.config, len(prompts) * room, weight.dtype, weight.device)
    context = CachedPieces(cache, [Piece(s * room, 0, length, length) for s, length in enumerate(lengths)])
    logits = [model.logits(model.hidden_states(torch.tensor(list(chain(*prompts))), context.positions_T, context))]
    for step in range(count):
        context = CachedPieces(cache, [
            Piece(s * room, length + step, 1, length + step + 1) for s, length in enumerate(lengths)])
        tokens_S = (context.positions_T * 7 + step) % VOCAB
        logits.append(model.logits(model.hidden_states(tokens_S, context.positions_T, context)))
    return logits


def trained_like(config: ModelConfig) -> MiniMindForCausalLM:
    """Returns a model whose weights are exact in float16, as in a weights file."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.1)
    return model.half().float().eval()
