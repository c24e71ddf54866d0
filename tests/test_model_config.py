"""The shape of a model: presets and contradictions."""

import pytest

from minimind_sft.errors import UserError
from minimind_sft.model.config import PRESETS, ModelConfig, RopeScaling


def test_presets_have_the_sizes_of_their_names():
    assert (PRESETS["26m"].hidden_size, PRESETS["26m"].num_hidden_layers) == (512, 8)
    assert PRESETS["26m"].intermediate_size == 1664
    assert (PRESETS["64m-moe"].hidden_size, PRESETS["64m-moe"].use_moe) == (768, True)


@pytest.mark.parametrize(("fields", "message"), [
    ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple"),
    ({"head_dim": 7}, "head_dim is 7, expected an even number"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 exceeds num_experts 4"),
    ({"use_moe": True, "mlp": "gelu"}, "use_moe is true: experts need mlp 'swiglu' and mlp_bias false"),
    ({"use_moe": True, "mlp_bias": True}, "use_moe is true: experts need mlp 'swiglu' and mlp_bias false"),
    ({"head_dim": 2, "rope_scaling": RopeScaling("dynamic")}, r"head_dim is 2, expected at least 4 \(dynamic RoPE"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected at least 1"),
])
def test_a_contradictory_model_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**fields)


def test_without_rope_heads_may_have_any_width():
    assert ModelConfig(head_dim=7, positions="learned").head_dim == 7


def test_llama_3s_scaling_needs_a_range_to_blend_in():
    with pytest.raises(UserError, match=r"low_freq_factor is 4\.0, expected a number between 0"):
        RopeScaling("llama3", low_freq_factor=4.0, high_freq_factor=4.0)
