"""The fast forms of adapters give the same logits as the plain ones, and the base keeps its packed form."""

from dataclasses import replace

import pytest
import torch
from tiny_generation import CONFIGS, PRODUCTION, PROMPTS, build, half_needed, steps, trained_like
from torch import nn

from minimind_sft.inference.lowering import LoweredModel, lower_model, ready_to_decode
from minimind_sft.inference.packed import HalfProduct, Product, pack, plain
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import LoraShape, adapted, add_adapters
from minimind_sft.model.lora_targets import chosen_projections


def with_adapters(model: MiniMindForCausalLM, *targets: str) -> MiniMindForCausalLM:
    """Adds random changes that matter, in the model's dtype."""
    dtype = model.embed_tokens.weight.dtype
    torch.manual_seed(4)
    add_adapters(model, chosen_projections(model, targets or ("all-linear",)), LoraShape(rank=3, alpha=6.0))
    for _, change in adapted(model):
        nn.init.normal_(change.lora_B, std=0.2)
    return model.to(dtype).eval()


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "several"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_the_model_s(name: str, prompts: list[list[int]]):
    unchanged = torch.cat(steps(build(CONFIGS[name]), prompts))
    model = with_adapters(build(CONFIGS[name]))
    expected = torch.cat(steps(model, prompts))
    assert (expected - unchanged).abs().max() > 0.01
    torch.testing.assert_close(torch.cat(steps(LoweredModel(model, plain), prompts)), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("targets", [("q_proj",), ("v_proj", "up_proj"), ("layers.0", "down_proj")])
@torch.no_grad()
def test_projections_with_and_without_an_adapter_share_a_product(targets: tuple[str, ...]):
    for name in ("dense", "moe", "gpt2"):
        model = build(CONFIGS[name])
        model = with_adapters(model, *(target for target in targets if name != "moe" or "proj" in target))
        torch.testing.assert_close(torch.cat(steps(LoweredModel(model, plain), PROMPTS)),
                                   torch.cat(steps(model, PROMPTS)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("changes", [{}, {"use_moe": True, "num_experts_per_tok": 2}], ids=["dense", "moe"])
@half_needed
@torch.no_grad()
def test_the_base_keeps_its_packed_half_precision(changes: dict):
    model = with_adapters(trained_like(replace(PRODUCTION, **changes)))
    kinds = []

    def remembered(weights: list[torch.Tensor], bias: torch.Tensor | None) -> Product:
        kinds.append((type(product := pack(weights, bias)), min(weights[0].shape)))
        return product

    lowered = lower_model(model, remembered)
    assert {kind for kind, smaller_size in kinds if smaller_size > 9} == {HalfProduct}  # the others are the changes
    for prompts in (PROMPTS[:1], PROMPTS * 4):
        torch.testing.assert_close(torch.cat(steps(lowered, prompts)), torch.cat(steps(model, prompts)),
                                   rtol=1e-4, atol=1e-4)


@half_needed
@torch.inference_mode()
def test_bfloat16_logits_are_more_exact_than_the_model_s():
    model = with_adapters(trained_like(PRODUCTION).bfloat16())
    for prompts in (PROMPTS[:1], PROMPTS * 4):
        exact = torch.cat(steps(model.double(), prompts))
        model = model.bfloat16()
        ours, models = (torch.cat(steps(m, prompts)).double() for m in (ready_to_decode(model), model))
        assert (ours - exact).std() < (models - exact).std() < 0.05 * exact.std()


class OtherLinear(nn.Linear):
    """Stands for a quantised projection, which has no fast form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(x)


@torch.no_grad()
def test_an_adapter_around_an_unknown_base_stays_as_it_is():
    model = build(CONFIGS["dense"])
    for name in chosen_projections(model, ["all-linear"])[::2]:
        model.get_submodule(name).__class__ = OtherLinear
    model = with_adapters(model)
    torch.testing.assert_close(torch.cat(steps(LoweredModel(model, plain), PROMPTS)),
                               torch.cat(steps(model, PROMPTS)), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_an_adapter_with_a_hook_stays_as_it_is():
    model = with_adapters(build(CONFIGS["dense"]))
    for projection in (model.model.layers[0].self_attn.k_proj, model.model.layers[1].mlp.up_proj):
        projection.register_forward_hook(lambda module, inputs, output: 2 * output)
    torch.testing.assert_close(torch.cat(steps(LoweredModel(model, plain), PROMPTS)),
                               torch.cat(steps(model, PROMPTS)), rtol=1e-11, atol=1e-11)
