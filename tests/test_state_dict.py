"""The state dict: Qwen3's names and shapes, strict loading, and the tied head."""

from dataclasses import replace

import pytest
import torch

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM

TINY = ModelConfig(vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                   head_dim=8, intermediate_size=40)


def test_state_dict_names_and_shapes_are_qwen3s():
    model = MiniMindForCausalLM(replace(TINY, num_hidden_layers=1))
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == {
        "model.embed_tokens.weight": (61, 24),
        "model.layers.0.input_layernorm.weight": (24,),
        "model.layers.0.self_attn.q_proj.weight": (32, 24),
        "model.layers.0.self_attn.k_proj.weight": (16, 24),
        "model.layers.0.self_attn.v_proj.weight": (16, 24),
        "model.layers.0.self_attn.o_proj.weight": (24, 32),
        "model.layers.0.self_attn.q_norm.weight": (8,),
        "model.layers.0.self_attn.k_norm.weight": (8,),
        "model.layers.0.post_attention_layernorm.weight": (24,),
        "model.layers.0.mlp.gate_proj.weight": (40, 24),
        "model.layers.0.mlp.up_proj.weight": (40, 24),
        "model.layers.0.mlp.down_proj.weight": (24, 40),
        "model.norm.weight": (24,),
        "lm_head.weight": (61, 24),
    }


def test_a_tied_head_may_be_missing_but_must_not_differ():
    state = dict(MiniMindForCausalLM(TINY).state_dict())
    model = MiniMindForCausalLM(TINY)
    del state["lm_head.weight"]
    model.load_state_dict(state, strict=True)
    torch.testing.assert_close(model.lm_head.weight.data, state["model.embed_tokens.weight"], rtol=0, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"] + 1}, strict=True)


@pytest.mark.parametrize(("config", "name"), [
    (TINY, "model.norm.weight"), (TINY, "model.embed_tokens.weight"),
    (replace(TINY, tie_word_embeddings=False), "lm_head.weight"),
], ids=["norm", "embedding", "untied_head"])
def test_a_missing_weight_is_named(config: ModelConfig, name: str):
    state = dict(MiniMindForCausalLM(TINY).state_dict())
    del state["lm_head.weight"]
    state.pop(name, None)
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        MiniMindForCausalLM(config).load_state_dict(state, strict=True)
