"""adapter_config.json of PEFT: ranks, scales and targets by patterns of names."""

import pytest

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.peft_config import MAX_PATTERNS, read_config


@pytest.mark.parametrize(("more", "module", "rank", "scale"), [
    ({}, "model.layers.0.mlp.up_proj", 8, 2.0),
    ({"use_rslora": True, "r": 16}, "model.layers.0.mlp.up_proj", 16, 4.0),
    ({"rank_pattern": {"up_proj": 4}}, "model.layers.0.mlp.up_proj", 4, 4.0),
    ({"rank_pattern": {"p_proj": 4}}, "model.layers.0.mlp.up_proj", 8, 2.0),
    ({"alpha_pattern": {r".*\.0\.mlp\..*": 8, "up_proj": 4}}, "model.layers.0.mlp.up_proj", 8, 1.0),
    ({"alpha_pattern": {"^model.layers.0.mlp.up_proj": 8}}, "model.layers.0.mlp.up_proj", 8, 1.0),
])
def test_rank_and_scale(more: dict, module: str, rank: int, scale: float):
    config = read_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **more})
    assert (config.rank(module), config.scale(module)) == (rank, scale)


@pytest.mark.parametrize(("more", "module", "expected"), [
    ({"target_modules": ["q_proj"]}, "model.layers.0.self_attn.q_proj", True),
    ({"target_modules": ["_proj"]}, "model.layers.0.self_attn.q_proj", False),
    ({"target_modules": r".*\.(q|v)_proj"}, "model.layers.0.self_attn.v_proj", True),
    ({"target_modules": "q_proj"}, "model.layers.0.self_attn.q_proj", False),  # a string must match the whole name
    ({"target_modules": "all-linear"}, "lm_head", False),
    ({"target_modules": ["up_proj"], "exclude_modules": ["0.mlp.up_proj"]}, "model.layers.0.mlp.up_proj", False),
    ({"target_modules": ["q_proj"], "layers_to_transform": 1}, "model.layers.1.self_attn.q_proj", True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}, "model.layers.1.self_attn.q_proj", False),
    ({"target_modules": ["up_proj"], "layers_to_transform": [1]}, "model.layers.1.mlp.experts.0.up_proj", True),
    ({"target_modules": ["c_fc"], "layers_to_transform": [1], "layers_pattern": "h"}, "transformer.h.1.mlp.c_fc", True),
])
def test_targets(more: dict, module: str, expected: bool):
    assert read_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **more}).targets(module) == expected


def refused(**fields: object) -> str:
    with pytest.raises(UserError) as error:
        read_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **fields})
    return str(error.value)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern",
                                   "alpha_pattern"])
@pytest.mark.parametrize(("pattern", "problem"), [
    ("(", "not a regular expression"),
    ("(.*)*x", "can take exponential time"),
    (r"(\w+\.?)+x", "can take exponential time"),
    (".*.*.*.*.*.*x", "repeats 6 items, expected at most 5"),
    ("a?" * 30, "repeats 30 items, expected at most 5"),
    ("(a|a)" * 30, "ways to choose among its alternatives"),
    ("a{99999999999999}", "not a regular expression"),
    ("(" * 200 + ")" * 200, "nests more than 50 groups"),
    (r"(a)\1", "refers back to a group"),
])
def test_patterns_that_can_take_very_long_are_refused(field: str, pattern: str, problem: str):
    is_object = field in ("rank_pattern", "alpha_pattern")
    message = refused(**{field: {pattern: 4} if is_object else pattern})
    assert message.startswith(field) and problem in message


def test_the_pattern_of_another_library_is_accepted():
    """As Unsloth writes it: five repetitions, and many alternatives."""
    pattern = (r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn"
               r"|dense).*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\."
               r"[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj"
               r"|gate_proj|up_proj|down_proj)))")
    config = read_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": pattern})
    assert config.targets("model.layers.0.mlp.up_proj") and not config.targets("lm_head")


def test_the_number_of_patterns_is_bounded():
    many = {f"layers.{layer}.mlp": 4 for layer in range(MAX_PATTERNS + 1)}
    assert refused(rank_pattern=many) == "rank_pattern: expected at most 2,000 names, found 2,001"


def test_a_layers_pattern_with_a_group_is_read():
    config = read_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["c_fc"],
                          "layers_to_transform": [1], "layers_pattern": "(g|h)"})
    assert config.targets("transformer.h.1.mlp.c_fc") and not config.targets("transformer.h.0.mlp.c_fc")
