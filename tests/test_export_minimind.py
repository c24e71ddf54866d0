"""MiniMind's own .pth, of both generations."""

import json
from dataclasses import replace
from shlex import quote

import pytest
import torch
from chats import BUNDLED, TOKENIZER
from export_models import CONFIGS, QWEN3, UNNORMALISED
from exports import export_of

from minimind_sft.errors import UserError
from minimind_sft.export.check import compare
from minimind_sft.export.minimind import arguments_of, generation_of, next_steps, write_state_dict
from minimind_sft.export.model import Export, stored_dtype
from minimind_sft.matching import encoding_facts
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.weights import read_weights

THIRD = ModelConfig(hidden_size=768, num_hidden_layers=8)
SECOND = ModelConfig(hidden_size=512, num_hidden_layers=8, num_key_value_heads=2, qk_norm=False, rms_norm_eps=1e-5,
                     intermediate_size=1408)
SECOND_MOE = replace(SECOND, use_moe=True, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=1408,
                     norm_topk_prob=True, num_shared_experts=1)
TINY_SECOND = replace(QWEN3, qk_norm=False, head_dim=8)
TINY_SECOND_MOE = replace(TINY_SECOND, use_moe=True, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16,
                          norm_topk_prob=True, num_shared_experts=2)
EXPERT = ["down_proj", "gate_proj", "up_proj"]
LAYER = ["input_layernorm", *(f"mlp.{name}" for name in EXPERT), "post_attention_layernorm",
         *(f"self_attn.{name}" for name in ("k_norm", "k_proj", "o_proj", "q_norm", "q_proj", "v_proj"))]


def write(path, export):
    write_state_dict(path, export, encoding_facts(TOKENIZER, export.template))
    return torch.load(path, weights_only=True)


def test_names_shapes_and_dtype_of_the_third_generation(tmp_path):
    export = export_of(QWEN3, "float16")
    state = write(tmp_path / "a_32.pth", export)
    assert sorted(state) == sorted(["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight",
                                    *(f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in LAYER)])
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert (tmp_path / "a_32.pth").stat().st_size < 2 * sum(t.numel() for t in export.weights.tensors.values()) + 20_000
    assert "rounded" in str(compare(export, read_weights(tmp_path / "a_32.pth"), TOKENIZER))


def test_names_of_a_mixture_of_the_second_generation(tmp_path):
    state = write(tmp_path / "a.pth", export_of(TINY_SECOND_MOE, "float32"))
    prefix = "model.layers.1.mlp."
    assert sorted(name.removeprefix(prefix) for name in state if name.startswith(prefix)) == [
        *(f"experts.{i}.{name}.weight" for i in range(3) for name in EXPERT), "gate.weight",
        *(f"shared_experts.{i}.{name}.weight" for i in range(2) for name in EXPERT)]
    assert not any("norm" in name and "self_attn" in name for name in state)


@pytest.mark.parametrize("config", [QWEN3, CONFIGS["qwen3_moe"], replace(QWEN3, tie_word_embeddings=False),
                                    TINY_SECOND, TINY_SECOND_MOE],
                         ids=["dense", "moe", "untied", "second", "second moe"])
def test_it_is_read_back_as_it_was(config, tmp_path):
    export = export_of(config)
    write(tmp_path / "a_32.pth", export)
    found = compare(export, read_weights(tmp_path / "a_32.pth"), TOKENIZER)
    assert found.rounded == 0


def test_its_sidecar_says_what_belongs_to_it(tmp_path):
    export = export_of(QWEN3, "float16")
    trained = replace(export.weights, sidecar={"stage": "pretrain", "training": {"step": 3}, "family": "x"})
    write(tmp_path / "a_32.pth", Export(trained, TOKENIZER, export.template, "float16"))
    sidecar = json.loads((tmp_path / "a_32.json").read_text())
    assert sidecar["tokenizer"] == TOKENIZER.fingerprint and sidecar["chat_template"] == export.template.fingerprint
    assert (sidecar["stage"], sidecar["training"], sidecar["family"]) == ("pretrain", {"step": 3}, "x")
    assert sidecar["parameters"] == sum(tensor.numel() for tensor in trained.tensors.values())


@pytest.mark.parametrize(("config", "name"), [
    (THIRD, "MiniMind-3"), (SECOND, "MiniMind-2"), (SECOND_MOE, "MiniMind-2")])
def test_what_minimind_builds_by_default_needs_no_arguments(config, name):
    assert generation_of(config).name == name
    assert arguments_of(config) == {}


@pytest.mark.parametrize(("config", "expected"), [
    (replace(THIRD, num_attention_heads=4, num_key_value_heads=4, intermediate_size=100),
     {"num_attention_heads": 4, "intermediate_size": 100, "head_dim": 96}),
    (replace(THIRD, rope_scaling=RopeScaling(), max_position_embeddings=65536),
     {"max_position_embeddings": 65536, "inference_rope_scaling": True}),
    (replace(THIRD, use_moe=True, norm_topk_prob=True, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64),
     {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    (replace(SECOND_MOE, num_experts=8, num_shared_experts=2, moe_intermediate_size=64),
     {"intermediate_size": 64, "n_routed_experts": 8, "n_shared_experts": 2}),
])
def test_sizes_that_minimind_has_no_flags_for(config, expected):
    assert arguments_of(config) == expected


@pytest.mark.parametrize(("config", "named"), [
    (replace(QWEN3, attention_bias="qkv"), "attention_bias is 'qkv', MiniMind-3 has only 'none'"),
    (replace(QWEN3, sliding_window=8), "sliding_window is 8, MiniMind-3 has only None"),
    (replace(CONFIGS["gpt2"]), "norm is 'layer', MiniMind-2 has only 'rms'; mlp is 'gelu'"),
    (replace(QWEN3, rope_scaling=RopeScaling(factor=4.0)), "rope_scaling is yarn, MiniMind-3 has only its own YaRN"),
    (replace(TINY_SECOND, rope_scaling=RopeScaling()), "rope_scaling is yarn, MiniMind-2"),
    (replace(TINY_SECOND, head_dim=16), "head_dim is 16, MiniMind-2 has only 8"),
    (replace(TINY_SECOND, tie_word_embeddings=False), "tie_word_embeddings is False, MiniMind-2 has only True"),
    (replace(CONFIGS["qwen3_moe"], num_shared_experts=1), "num_shared_experts is 1, MiniMind-3 has only 0"),
    (UNNORMALISED, "norm_topk_prob is off"),
    (replace(TINY_SECOND_MOE, num_experts_per_tok=1), "norm_topk_prob is on"),
])
def test_what_minimind_cannot_express_is_refused_by_field(config, named):
    with pytest.raises(UserError, match=r"MiniMind cannot express this model: .*; try --to huggingface") as raised:
        generation_of(config)
    assert named in str(raised.value)


def test_the_command_for_minimind(tmp_path):
    assert next_steps(replace(THIRD, use_moe=True, norm_topk_prob=True, num_hidden_layers=6),
                      tmp_path / "chat_768_moe.pth", tmp_path / "model") == [
        "Use it in a clone of MiniMind-3:",
        f"    python eval_llm.py --save_dir {quote(str(tmp_path))} --weight chat --hidden_size 768 "
        f"--num_hidden_layers 6 --use_moe 1 --load_from {quote(str(tmp_path / 'model'))}"]
    (tmp_path / "x.gguf").touch()
    for tokenizer, expected in ((tmp_path / "x.gguf", "as a folder: --to huggingface writes one"),
                                (tmp_path / "folder", "only if its path contains the word model: copy")):
        assert expected in next_steps(THIRD, tmp_path / "chat_768.pth", tokenizer)[0]
    renamed, *_ = next_steps(THIRD, tmp_path / "chat.pth", tmp_path / "model")
    assert renamed == "MiniMind's programs look for NAME_768.pth: rename the file to chat_768.pth"


@pytest.mark.parametrize("name", ["dense", "moe", "moe_top2"])
def test_weights_that_minimind_saved_come_back_as_they_were(name, shared, tmp_path):
    file = shared / "reference" / "minimind" / name / "weights.pth"
    weights, saved = read_weights(file), torch.load(file, weights_only=True)
    state = write(tmp_path / "a.pth", Export(weights, TOKENIZER, BUNDLED, stored_dtype(weights)))
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) and state[name].dtype == saved[name].dtype for name in saved)
