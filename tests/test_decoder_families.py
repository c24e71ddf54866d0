"""Each feature that only some families have, in a tiny model: the batch may be divided and computed in any way."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_decoder import FAMILIES, TINY, TINY_MOE, build, random_batch

from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.kernels.selection import plain_formulas

LENGTHS = [9, 1, 17, 4, 5, 16]
each_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


def gradients(model: MiniMindForCausalLM, micro_batches: list[list[int]], more: int = 0) -> list[torch.Tensor]:
    """Returns the gradients of a step with its documents in these micro-batches, each filled up by `more` tokens."""
    input_ids, labels, cu_seqlens = random_batch(LENGTHS)
    spans, nothing = list(itertools.pairwise(cu_seqlens)), torch.full((more,), IGNORE_INDEX)
    model.zero_grad()
    for documents in micro_batches:
        tokens = torch.tensor([t for d in documents for t in range(*spans[d])], dtype=torch.int64)
        bounds = (0, *itertools.accumulate(LENGTHS[d] for d in documents))
        losses = model(torch.cat((input_ids[tokens], nothing.abs() % 61)), torch.cat((labels[tokens], nothing)), bounds)
        (losses.loss_sum / (labels != IGNORE_INDEX).sum() + losses.aux_loss_sum / len(labels)).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(model: MiniMindForCausalLM, ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Compares within rounding; the key bias of a layer without RoPE has no influence, so its gradient is rounding."""
    whole = torch.stack([gradient.norm() for gradient in expected]).norm()
    for (name, _), one, other in zip(model.named_parameters(), ours, expected, strict=True):
        assert (one - other).norm() <= 1e-10 * max(other.norm(), 1e-6 * whole), name


ALL = [[0, 1, 2, 3, 4, 5]]
WAYS: dict[str, Callable[[MiniMindForCausalLM], list[torch.Tensor]]] = {
    "one by one": lambda model: gradients(model, [[0], [1], [2], [3], [4], [5]]),
    "unequal and empty": lambda model: gradients(model, [[5, 3], [0, 1, 2, 4], []]),
    "filled up": lambda model: gradients(model, ALL, more=100),  # more than learned positions
    "recomputed": lambda model: setattr(model.model, "gradient_checkpointing", True) or gradients(model, ALL),
}


@each_family
def test_the_gradient_does_not_depend_on_how_it_is_computed(config: ModelConfig):
    model = build(config, torch.float64)
    with plain_formulas():
        expected = gradients(model, ALL)
    assert_same(model, gradients(model, ALL), expected)
    for way in WAYS.values():
        assert_same(model, way(model), expected)


@each_family
def test_packed_documents_have_the_same_logits_as_alone(config: ModelConfig):
    model = build(config, torch.float64).eval()
    input_ids, _, cu_seqlens = random_batch(LENGTHS)
    packed = model.document_logits(input_ids, cu_seqlens)
    alone = [model.document_logits(input_ids[a:b], (0, b - a)) for a, b in itertools.pairwise(cu_seqlens)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-11, atol=1e-11)


@each_family
def test_an_empty_micro_batch_gives_every_weight_a_zero_gradient(config: ModelConfig):
    model, nothing = build(config), torch.empty(0, dtype=torch.int64)
    sum(model(nothing, nothing, (0,))).backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


@each_family
def test_under_bfloat16_autocast_the_loss_is_close(config: ModelConfig):
    model, batch = build(config, std=0.1), random_batch(LENGTHS)
    exact = model(*batch).loss_sum.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*batch)
    assert losses.loss_sum.dtype == torch.float32
    assert losses.loss_sum.item() == pytest.approx(exact, rel=0.01)
    sum(losses).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm3", "gpt2"])
def test_compiled_layers_have_the_same_gradients(name: str):
    """Uses the backend that only captures graphs, on models that have all kinds of layers between them."""
    torch.compiler.reset()
    model = build(FAMILIES[name], torch.float64)
    expected = gradients(model, ALL)
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend="aot_eager")
    assert_same(model, gradients(model, ALL), expected)


def test_dynamic_scaling_lengthens_only_documents_beyond_the_original_context():
    config = FAMILIES["dynamic"]
    model, plain = build(config, torch.float64), build(replace(config, rope_scaling=None), torch.float64)
    input_ids, _, _ = random_batch([8, 9])
    for bounds, same in (((0, 8), True), ((0, 9), False)):
        ours, theirs = (each.document_logits(input_ids[: bounds[1]], bounds) for each in (model, plain))
        assert torch.equal(ours, theirs) == same


def names(config: ModelConfig) -> set[str]:
    """Returns the names in a state dict, without those that every model has."""
    usual = {f"layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm", *(
        f"self_attn.{x}_proj" for x in "qkvo"))} | {"embed_tokens.weight", "norm.weight"}
    found = set(MiniMindForCausalLM(replace(
        config, num_hidden_layers=1, layers_without_rope=(), full_attention_layers=())).state_dict())
    assert {f"model.{name}" for name in usual} | {"lm_head.weight"} <= found
    return {name.removeprefix("model.").removeprefix("layers.0.") for name in found} - {
        "lm_head.weight", *(name.removeprefix("layers.0.") for name in usual)}


SWIGLU = {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


@pytest.mark.parametrize(("config", "expected"), [
    (FAMILIES["mistral"], SWIGLU),
    (FAMILIES["qwen2"], SWIGLU | {f"self_attn.{x}_proj.bias" for x in "qkv"}),
    (FAMILIES["gpt2"], {
        "embed_positions.weight", "mlp.up_proj.weight", "mlp.up_proj.bias", "mlp.down_proj.weight",
        "mlp.down_proj.bias", "norm.bias", "input_layernorm.bias", "post_attention_layernorm.bias",
        *(f"self_attn.{x}_proj.bias" for x in "qkvo")}),
    (replace(FAMILIES["minimind2_moe"], num_experts=2, num_shared_experts=1), {"mlp.gate.weight"} | {
        f"mlp.{kind}.{name}_proj.weight" for kind in ("experts.0", "experts.1", "shared_experts.0")
        for name in ("gate", "up", "down")}),
], ids=["mistral", "qwen2", "gpt2", "minimind2_moe"])
def test_state_dict_names(config: ModelConfig, expected: set[str]):
    assert names(config) == expected


def test_positions_have_a_vector_each():
    assert build(FAMILIES["gpt2"]).model.embed_positions.weight.shape == (64, 24)


@pytest.mark.parametrize("config", [
    replace(TINY, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu", positions="learned", hidden_size=128,
            intermediate_size=256, max_position_embeddings=256),
    replace(TINY_MOE, num_shared_experts=1, hidden_size=128, moe_intermediate_size=256),
], ids=["gpt2", "minimind2_moe"])
def test_new_weights_are_normal_norms_are_one_and_biases_zero(config: ModelConfig):
    torch.manual_seed(0)
    for name, parameter in MiniMindForCausalLM(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(6) if "o_proj" in name or "down_proj" in name else 0.02  # twice 3 layers
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
