"""Configurations that are refused by name, and how RoPE is read in each way of writing it."""

from dataclasses import fields
from typing import Any

import pytest

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.families.registry import FAMILIES, family_of

LLAMA = {"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
QWEN2 = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 8}
MOE = {**QWEN2, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
       "norm_topk_prob": True}
MISTRAL = {**QWEN2, "model_type": "mistral", "sliding_window": 5}
GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "layer_norm_epsilon": 1e-5}
SMOLLM3 = {**QWEN2, "model_type": "smollm3"}
PHI3 = {**LLAMA, "model_type": "phi3"}


def read(values: dict[str, Any], **changed: Any) -> ModelConfig:
    values = {name: value for name, value in {**values, **changed}.items() if value != "removed"}
    return family_of(values).read_config(values)


@pytest.mark.parametrize(("values", "changed", "message"), [
    (LLAMA, {"hidden_act": "gelu"}, 'hidden_act: is "gelu", the decoder computes only "silu": use another model'),
    (LLAMA, {"pretraining_tp": 2}, "pretraining_tp: is 2, the decoder computes only 1: use another model"),
    (LLAMA, {"rope_interleaved": True},
     "rope_interleaved: is true, the decoder computes only false: use another model"),
    (LLAMA, {"partial_rotary_factor": 0.5},
     "partial_rotary_factor: is 0.5, the decoder computes only 1.0: use another model"),
    (LLAMA, {"attn_logit_softcapping": 50.0},
     "attn_logit_softcapping: is 50.0, a field unknown here: it may change what the model computes; remove it from the "
     "file if you know that it does not"),
    (LLAMA, {"layer_types": ["full_attention"] * 2}, "layer_types: is a list, a field unknown here: it may change what "
     "the model computes; remove it from the file if you know that it does not"),
    (LLAMA, {"quantization_config": {"quant_method": "gptq", "bits": 4}},
     'quantization_config: quantised weights ("gptq") cannot be trained: use the model\'s folder in float16, bfloat16 '
     "or float32"),
    (LLAMA, {"quantization_config": {"load_in_4bit": True}}, "quantization_config: quantised weights (null) cannot be "
     "trained: use the model's folder in float16, bfloat16 or float32"),
    (LLAMA, {"vocab_size": "removed"}, "vocab_size: missing; the file that came with the model has it"),
    (LLAMA, {"vocab_size": None}, "vocab_size: expected a whole number from 1, found null"),
    (LLAMA, {"hidden_size": True}, "hidden_size: expected a whole number from 1, found true"),
    (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers: expected a whole number from 1, found 0"),
    (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers: is 1,000,000,000, expected at most 10,000"),
    (LLAMA, {"hidden_size": 10**12}, "hidden_size: expected a whole number from 1, found 1000000000000"),
    (LLAMA, {"rms_norm_eps": "1e-5"}, 'rms_norm_eps: expected a number from 0, found "1e-5"'),
    (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a number from 0, found NaN"),
    (LLAMA, {"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
    (LLAMA, {"num_attention_heads": 5, "num_key_value_heads": 2},
     "model configuration: num_attention_heads 5 is not a multiple of num_key_value_heads 2"),
    (QWEN2, {"num_key_value_heads": "removed"},
     "num_key_value_heads: missing; the file that came with the model has it"),
    (QWEN2, {"use_mrope": True}, "use_mrope: is true, the decoder computes only false: use another model"),
    (QWEN2, {"use_sliding_window": True}, "max_window_layers: missing; the file that came with the model has it"),
    (QWEN2, {"layer_types": ["full_attention"]},
     "layer_types: expected a list of 2 strings, one per layer, found a list of 1"),
    (QWEN2, {"layer_types": ["full_attention", "chunked_attention"]},
     "layer_types: layer 1 is 'chunked_attention', the decoder computes only 'full_attention' and "
     "'sliding_attention': use another model"),
    (QWEN2, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
     "layer_types: layer 0 is 'sliding_attention', but the file has no window for it (use_sliding_window, "
     "sliding_window)"),
    (QWEN3, {"head_dim": "removed"}, "head_dim: missing; the file that came with the model has it"),
    (MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step: is 2, the decoder computes only 1: use another model"),
    (MOE, {"mlp_only_layers": [0]},
     "mlp_only_layers: is a list, the decoder computes only an empty list: use another model"),
    (MOE, {"num_local_experts": 8}, "num_experts: is 4, but num_local_experts is 8: remove the one that is wrong"),
    (MOE, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
     "max_window_layers: is 1, the decoder computes only 0: use another model"),
    (MISTRAL, {"sliding_window": "removed"}, "sliding_window: missing; the file that came with the model has it"),
    (MISTRAL, {"sliding_window": 0}, "sliding_window: expected a whole number from 1, found 0"),
    (GPT2, {"activation_function": "relu"}, 'activation_function: is "relu", the decoder computes only "gelu_new" or '
     '"gelu_pytorch_tanh": use another model'),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True},
     "scale_attn_by_inverse_layer_idx: is true, the decoder computes only false: use another model"),
    (GPT2, {"n_head": 5}, "n_head: 5 heads do not divide n_embd 24"),
    (SMOLLM3, {"no_rope_layers": [1, 2]},
     "no_rope_layers: expected a 1 for each layer with RoPE and a 0 for each layer without"),
    (PHI3, {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
     "rope_scaling.rope_type: is 'longrope', the decoder computes only default, linear, dynamic, llama3, yarn: use "
     "another model"),
    (PHI3, {"rope_scaling": {"type": "yarn", "factor": 2.0}},
     "rope_scaling: the decoder computes Phi-3 only without it: use a version with a short context"),
    (PHI3, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}},
     "rope_parameters.partial_rotary_factor: is 0.75, the decoder computes only 1.0: use another model"),
    ({**LLAMA, "model_type": "gemma"}, {}, 'model_type: is "gemma", expected qwen3, qwen3_moe, llama, qwen2, mistral, '
     "gpt2, smollm3, phi3: other families cannot be read"),
    (LLAMA, {"model_type": "removed"}, "model_type: missing, expected qwen3, qwen3_moe, llama, qwen2, mistral, gpt2, "
     "smollm3, phi3: other families cannot be read"),
    (LLAMA, {"model_type": ["llama"]}, "model_type: is a list, expected qwen3, qwen3_moe, llama, qwen2, mistral, gpt2, "
     "smollm3, phi3: other families cannot be read"),
])
def test_refused(values: dict[str, Any], changed: dict[str, Any], message: str):
    with pytest.raises(UserError) as error:
        read(values, **changed)
    assert str(error.value) == message


def test_null_in_an_unknown_field_means_nothing():
    assert read(LLAMA, attn_logit_softcapping=None, quantization_config=None) == read(LLAMA)


def test_fields_of_real_files_are_known():
    """What the files of TinyLlama, SmolLM2, Qwen2.5, GPT-2 and Phi-3 have beside the fields that are read."""
    read(LLAMA, **{"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {}},
                   "initializer_range": 0.04, "torch_dtype": "bfloat16", "_name_or_path": "x", "use_cache": True,
                   "attention_dropout": 0.0, "architectures": ["LlamaForCausalLM"], "pretraining_tp": 1})
    read(QWEN2, use_sliding_window=False, max_window_layers=24, sliding_window=32768, use_mrope=False)
    read(GPT2, n_ctx=64, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
         resid_pdrop=0.1, summary_type="cls_index", summary_first_dropout=0.1, activation_function="gelu_new")
    read(PHI3, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, attention_bias=False, embd_pdrop=0.0,
         original_max_position_embeddings=4096, rope_scaling=None, sliding_window=2047)
    read(SMOLLM3, pretraining_tp=2, max_window_layers=28, no_rope_layer_interval=4, use_sliding_window=False)


def test_defaults_of_fields_that_old_files_lack():
    llama, smollm3, gpt2 = read(LLAMA), read(SMOLLM3), read(GPT2)
    assert (llama.num_key_value_heads, llama.head_dim) == (4, 6)
    assert (llama.rope_theta, llama.tie_word_embeddings) == (1e4, False)
    assert (smollm3.rope_theta, smollm3.tie_word_embeddings, smollm3.layers_without_rope) == (2e6, True, ())
    assert read(SMOLLM3, num_hidden_layers=9).layers_without_rope == (3, 7)
    assert (gpt2.intermediate_size, gpt2.tie_word_embeddings, gpt2.head_dim) == (96, True, 6)


# RoPE

LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(("written", "theta", "scaling"), [
    ({}, 1e4, None),
    ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
    ({"rope_theta": 500000, "rope_parameters": None}, 5e5, None),
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
    ({"rope_parameters": {"rope_type": "default"}}, 1e4, None),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, 5e5, RopeScaling("linear", 2.0)),
    ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}}, 1e4, RopeScaling("linear", 2.0)),
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "dynamic", "factor": 2.0}}, 5e5,
     RopeScaling("dynamic", 2.0, 64)),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}}, 1e4,
     RopeScaling("dynamic", 2.0, 64)),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 1e4,
     RopeScaling("llama3", 32.0, 32, low_freq_factor=1.0, high_freq_factor=4.0)),
    # Without its own field, the first context is max_position_embeddings; the factor is 0.1 ln(4) + 1.
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 1e4,
     RopeScaling("yarn", 4.0, 64, attention_factor=1.138629436111989)),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2,
                       "truncate": False, "original_max_position_embeddings": 16}}, 1e4,
     RopeScaling("yarn", 4.0, 16, 16.0, 2.0, 1.5, False)),
    # (0.1 * 2 * ln(4) + 1) / (0.1 * 0.5 * ln(4) + 1)
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5}}, 1e4,
     RopeScaling("yarn", 4.0, 64, attention_factor=1.1944648761087142)),
    ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
      "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}, 5e5, RopeScaling("linear", 2.0)),
])
def test_rope(written: dict[str, Any], theta: float, scaling: RopeScaling | None):
    config = read(LLAMA, **written)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    written_back = FAMILIES["llama"].write_config(config)
    assert written_back["rope_theta"] == written_back["rope_parameters"]["rope_theta"] == theta
    assert read(written_back) == config


@pytest.mark.parametrize(("written", "message"), [
    ({"rope_scaling": {"factor": 2.0}}, 'rope_scaling.rope_type: missing or "default", but there is a factor: name the '
     'kind of scaling, such as "linear", or remove the factor'),
    ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}},
     'rope_scaling.type: is "linear", but rope_type is "dynamic": remove the one that is wrong'),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: missing; the file that came with the model has it"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor: is 0.5, expected a number from 1"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "finetuned": True}},
     "rope_scaling.finetuned: is true, a field unknown here: it may change what the model computes; remove it from the "
     "file if you know that it does not"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}},
     "rope_scaling.original_max_position_embeddings: is 32, but max_position_embeddings is 64: remove the one that is "
     "wrong"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
     "rope_scaling.rope_type: is 'mrope', the decoder computes only default, linear, dynamic, llama3, yarn: use "
     "another model"),
    ({"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
     "rope_scaling.low_freq_factor: is 1, expected a number between 0 and high_freq_factor 1"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1e308}},
     "attention_factor is 1e+308, expected a number from 1e-06 to 1,000,000"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 5e-324}},
     "beta_fast is 5e-324, expected a number from 1e-06 to 1,000,000"),
    ({"rope_scaling": "linear"}, 'rope_scaling: expected an object, found "linear"'),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
     "rope_parameters.rope_theta: is 500000.0, but the file's own rope_theta is 10000.0: remove the one that is wrong"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
     "rope_scaling: differs from what rope_theta and rope_parameters say: remove the one that is wrong"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}},
     "rope_parameters.full_attention: is an object, a field unknown here: it may change what the model computes; "
     "remove it from the file if you know that it does not"),
])
def test_rope_refused(written: dict[str, Any], message: str):
    with pytest.raises(UserError) as error:
        read(LLAMA, **written)
    assert str(error.value) == message


def test_what_a_family_cannot_express_differs_when_read_back():
    """So that an export can name the field."""
    config = ModelConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, attention_bias="qkv", sliding_window=8,
                         full_attention_layers=(0,))
    found = {}
    for name, family in FAMILIES.items():
        back = family.read_config(family.write_config(config))
        found[name] = {field.name for field in fields(config)
                       if getattr(back, field.name) != getattr(config, field.name)}
    assert found["qwen2"] == {"qk_norm"}
    assert found["qwen3"] == {"attention_bias"}
    assert found["llama"] == {"attention_bias", "qk_norm", "sliding_window", "full_attention_layers"}
    assert found["gpt2"] >= {"qk_norm", "norm", "mlp", "positions"}


def test_a_llama_that_transformers_refuses_is_not_written():
    config = ModelConfig(hidden_size=24, num_attention_heads=5, num_key_value_heads=5, head_dim=8, qk_norm=False)
    with pytest.raises(UserError, match=r"^num_attention_heads: 5 heads do not divide hidden_size 24, as "):
        FAMILIES["llama"].write_config(config)
    assert FAMILIES["mistral"].read_config(FAMILIES["mistral"].write_config(config)).head_dim == 8


NONSENSE = (None, True, -1, 0, 1, 1.5, 10**20, 10**400, float("nan"), float("inf"), "", "x", [], [1], ["x"], [None], {},
            {"a": 1})


@pytest.mark.parametrize("values", [LLAMA, QWEN2, QWEN3, MOE, MISTRAL, GPT2, SMOLLM3, PHI3],
                         ids=lambda values: values["model_type"])
def test_nonsense_in_any_field_is_read_or_refused_in_one_line(values: dict[str, Any]):
    family = family_of(values)
    for rope in ({}, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "attention_factor": None}},
                 {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "rope_theta": 1e4}}):
        whole = {**family.write_config(read(values)), **rope}
        inside = [(name, key) for name, value in whole.items() if isinstance(value, dict) for key in value]
        for path in [(name,) for name in whole] + inside:
            for nonsense in NONSENSE:
                changed = ({**whole, path[0]: nonsense} if len(path) == 1 else
                           {**whole, path[0]: {**whole[path[0]], path[1]: nonsense}})
                try:
                    family_of(changed).read_config(changed)
                except UserError as error:
                    assert "\n" not in str(error) and len(str(error)) < 250, error
