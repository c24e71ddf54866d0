"""Adapters applied to a model: one, or the weighted sum of several."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_generation import CONFIGS, build

from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import adapted, merge_adapters
from minimind_sft.model.lora_targets import projections

ENDS = (0, 7)
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2])


def adapter(model: MiniMindForCausalLM, name: str, rank: int, scale: float, among: str = "") -> Adapter:
    """Returns a random adapter of the projections whose names contain `among`."""
    torch.manual_seed(rank)
    changes = {}
    for projection in projections(model):
        if among in projection:
            shape = weight(model, projection).shape
            changes[projection] = Change(torch.randn(*shape[:-2], rank, shape[-1]).double() * 0.2,
                                         torch.randn(*shape[:-1], rank).double() * 0.2, scale)
    return Adapter(Path(f"{name}.safetensors"), changes)


def weight(model: MiniMindForCausalLM, projection: str) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    return parameters[projection if projection in parameters else f"{projection}.weight"]


@pytest.mark.parametrize("name", ["dense", "moe", "gpt2"])
@torch.no_grad()
def test_the_model_computes_with_the_weighted_sum_of_the_changes(name: str):
    model, expected = build(CONFIGS[name]), build(CONFIGS[name])
    one, two = adapter(model, "one", 2, 1.5), adapter(model, "two", 3, 0.5, "down_proj")
    for each, share in ((one, 0.5), (two, -2.0)):
        for projection, (a, b, scale) in each.changes.items():
            weight(expected, projection).add_(share * scale * (b @ a))
    apply_adapters(model, [(one, 0.5), (two, -2.0)])
    logits = expected.document_logits(IDS, ENDS)
    assert (logits - build(CONFIGS[name]).document_logits(IDS, ENDS)).abs().max() > 0.01
    torch.testing.assert_close(model.document_logits(IDS, ENDS), logits, rtol=1e-11, atol=1e-11)
    assert {change.lora_A.shape[-2] for _, change in adapted(model)} == {2, 5}
    merge_adapters(model)
    torch.testing.assert_close(model.document_logits(IDS, ENDS), logits, rtol=1e-11, atol=1e-11)


def test_parameters_trained_in_full_replace_the_model_s():
    model = build()
    norm = torch.full((24,), 3.0, dtype=torch.float64)
    bias = replace(adapter(model, "one", 2, 1.0, "q_proj"), saved={"model.norm.weight": norm})
    apply_adapters(model, [(bias, 1.0), (adapter(model, "two", 2, 1.0), 0.5)])
    assert torch.equal(model.model.norm.weight, norm)


def test_they_are_neither_weighted_nor_summed():
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = {"model.norm.weight": torch.ones(24)}
    one, two = (replace(adapter(model, name, 2, 1.0), saved=saved) for name in ("one", "two"))
    with pytest.raises(UserError, match=r"^one.safetensors: model.norm.weight was trained in full, which cannot be "
                                        r"weighted; leave its weight 0.5 out$"):
        apply_adapters(model, [(one, 0.5)])
    with pytest.raises(UserError, match=r"^two.safetensors: model.norm.weight was trained in full, and one.safetensors "
                                        r"brings another; apply one of the two$"):
        apply_adapters(model, [(one, 1.0), (two, 1.0)])
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
