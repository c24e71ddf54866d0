"""Which projections get an adapter, and which modules train in full, by name."""

from dataclasses import replace

import pytest
import torch
from tiny_decoder import FAMILIES, TINY, TINY_MOE, build

from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoraShape, add_adapters, merge_adapters, own_parameters
from minimind_sft.model.lora_targets import (
    check_choice,
    chosen_modules,
    chosen_projections,
    projections,
    tied_notices,
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE, MOE = (build(config) for config in (TINY, TINY_MOE))
UNTIED = build(replace(TINY, tie_word_embeddings=False))


def names(*patterns: str, model: MiniMindForCausalLM = DENSE) -> list[str]:
    return [name.removeprefix("model.layers.") for name in chosen_projections(model, patterns)]


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def test_all_linear_is_attention_and_feed_forward_of_every_layer():
    per_layer = [*(f"self_attn.{name}" for name in ATTENTION), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert names("all-linear") == [f"{layer}.{name}" for layer in range(3) for name in per_layer]
    assert names("all-linear", model=UNTIED) == names("all-linear")


def test_all_linear_has_the_stacks_of_experts_and_shared_experts_but_no_router():
    found = names("all-linear", model=build(FAMILIES["minimind2_moe"]))
    assert found[:13] == [
        *(f"0.self_attn.{name}" for name in ATTENTION),
        *(f"0.mlp.experts.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
        *(f"0.mlp.shared_experts.{e}.{name}" for e in (0, 1) for name in ("gate_proj", "up_proj", "down_proj"))]
    assert len(found) == 39


def test_gpt2_s_layers_have_no_gate():
    assert names("all-linear", model=build(FAMILIES["gpt2"]))[:6] == [
        *(f"0.self_attn.{name}" for name in ATTENTION), "0.mlp.up_proj", "0.mlp.down_proj"]


@pytest.mark.parametrize(("patterns", "expected"), [
    (("q_proj",), ["0.self_attn.q_proj", "1.self_attn.q_proj", "2.self_attn.q_proj"]),
    (("layers.1-2.mlp.up_proj",), ["1.mlp.up_proj", "2.mlp.up_proj"]),
    (("layers.2.self_attn.[qv]_proj",), ["2.self_attn.q_proj", "2.self_attn.v_proj"]),
    (("layers.0.mlp", "layers.0.self_attn.o_proj"), [
        "0.self_attn.o_proj", "0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj"]),
    (("model.layers.1.self_attn.k_proj", "1.self_attn.k_proj"), ["1.self_attn.k_proj"]),
])
def test_patterns(patterns, expected):
    assert names(*patterns) == expected


def test_a_head_with_its_own_matrix_can_be_named():
    assert names("lm_head", "layers.0.self_attn.q_proj", model=UNTIED) == ["0.self_attn.q_proj", "lm_head"]


def test_an_adapter_on_the_head_trains_and_merges():
    model, ids, labels = build(UNTIED.config, torch.float64), torch.arange(12), torch.arange(1, 13)
    expected = model(ids, labels, (0, 12)).loss_sum
    add_adapters(model, ["lm_head"], LoraShape(rank=4))
    model.double()
    loss = model(ids, labels, (0, 12)).loss_sum
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    assert set(own_parameters(model)) == {"lm_head.lora_A", "lm_head.lora_B"}
    assert model.get_parameter("lm_head.lora_B").grad.any()
    model.get_parameter("lm_head.lora_B").data.normal_()
    before = model(ids, labels, (0, 12)).loss_sum
    merge_adapters(model)
    torch.testing.assert_close(model(ids, labels, (0, 12)).loss_sum, before, rtol=1e-12, atol=0)
    assert before != expected


@pytest.mark.parametrize(("model", "pattern", "expected"), [
    (DENSE, "qproj", "--target_modules qproj: matches no projection; there are q_proj, k_proj, v_proj, o_proj, "
                     "gate_proj, up_proj, down_proj in layers 0-2, and all-linear for all of them"),
    (DENSE, "layers.1-9.mlp", "--target_modules layers.1-9.mlp: layers.9.mlp matches no projection; there are q_proj, "
                              "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in layers 0-2, and all-linear "
                              "for all of them"),
    (DENSE, "q_proj,k_proj", "--target_modules q_proj,k_proj: matches no projection; there are q_proj, k_proj, v_proj, "
                             "o_proj, gate_proj, up_proj, down_proj in layers 0-2, and all-linear for all of them; "
                             "blanks separate names, not commas"),
    (DENSE, "lm_head", "--target_modules lm_head: the head has the embedding's matrix (tie_word_embeddings), and "
                       "merging an adapter would separate the two; --modules_to_save lm_head trains it in full, as "
                       "both"),
    (MOE, "gate", "--target_modules gate: the router takes no adapter; --modules_to_save gate trains it in full"),
    (MOE, "embed_tokens", "--target_modules embed_tokens: the embedding takes no adapter; --modules_to_save "
                          "embed_tokens trains it in full"),
])
def test_what_takes_no_adapter_is_refused(model, pattern, expected):
    assert refusal(chosen_projections, model, ["q_proj", pattern]) == expected


def test_modules_that_train_in_full():
    assert chosen_modules(DENSE, ["embed_tokens", "norm"]) == ["model.embed_tokens", "model.norm"]
    assert chosen_modules(MOE, ["layers.0-1.mlp.gate"]) == ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    assert refusal(chosen_modules, DENSE, ["wte"]) == (
        "--modules_to_save wte: matches no module; there are embed_tokens, lm_head, norm and the parts of each layer")
    assert refusal(chosen_modules, MOE, ["layers.0-9.mlp.gate"]).startswith(
        "--modules_to_save layers.0-9.mlp.gate: layers.9.mlp.gate matches no module; there are ")


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_embedding_and_head_of_one_matrix_train_together_and_it_is_said(name):
    model, untied = build(TINY), build(UNTIED.config)
    for one in (model, untied):
        add_adapters(one, projections(one), LoraShape())
        assert not tied_notices(one)
        for module in chosen_modules(one, [name]):
            one.get_submodule(module).requires_grad_(True)
    assert tied_notices(model) == [
        "embedding and head are one matrix (tie_word_embeddings): it trains in full, as both"]
    assert [one for one in own_parameters(model) if "lora" not in one] == ["model.embed_tokens.weight"]
    assert model.lm_head.weight is model.embed_tokens.weight
    assert not tied_notices(untied)


def test_a_rank_beyond_the_matrix_is_refused():
    for model in (DENSE, MOE):
        check_choice(model, projections(model), [], 16)
    assert refusal(check_choice, DENSE, projections(DENSE), [], 17) == (
        "--lora_rank 17: model.layers.0.self_attn.k_proj is a matrix of 16 x 24, so its rank is at most 16; choose a "
        "lower rank or other --target_modules")
    assert refusal(check_choice, MOE, ["model.layers.1.mlp.experts.down_proj"], [], 17) == (
        "--lora_rank 17: model.layers.1.mlp.experts.down_proj is a matrix of 24 x 16, so its rank is at most 16; "
        "choose a lower rank or other --target_modules")


@pytest.mark.parametrize(("model", "module", "target"), [
    (DENSE, "model.layers.0.mlp", "model.layers.0.mlp.gate_proj"),
    (DENSE, "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj"),
    (MOE, "model.layers.0.mlp.experts", "model.layers.0.mlp.experts.gate_proj"),
])
def test_a_module_trains_in_full_or_gets_an_adapter_not_both(model, module, target):
    assert refusal(check_choice, model, projections(model), [module], 8) == (
        f"--modules_to_save {module}: {target} would train in full and also have an adapter; name only other "
        "projections in --target_modules")
    check_choice(model, ["model.layers.0.self_attn.k_proj"], [module], 8)
    check_choice(model, projections(model), ["model.norm", "model.layers.0.input_layernorm"], 8)
