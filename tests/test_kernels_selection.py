"""Choosing between formulas and kernels; a whole model computes the same with either."""

import pytest
import torch
from plain_attention import CPU, flat_qkv
from tiny_decoder import TINY, TINY_MOE, build, random_batch
from torch._subclasses import FakeTensorMode

from minimind_sft.model import layers, lora, moe
from minimind_sft.model.attention import Documents
from minimind_sft.model.kernels import cross_entropy, gated, norm, padded_attention, rope
from minimind_sft.model.kernels.selection import FORMULAS, implementation, plain_formulas


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_a_model_computes_the_same_with_formulas_and_kernels(config):
    model, batch = build(config, torch.float64), random_batch([9, 30, 1, 51])

    def results() -> list[torch.Tensor]:
        losses = model(*batch)
        return [*losses, *torch.autograd.grad(sum(losses), list(model.parameters()))]

    fast = results()
    with plain_formulas():
        plain = results()
    assert any(not torch.equal(one, other) for one, other in zip(fast, plain, strict=True)), "both were kernels"
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)


def test_formulas_lists_every_formula():
    marked = {name for module in (layers, lora, moe) for name, function in vars(module).items()
              if getattr(function, "__code__", None) is layers.gated.__code__  # that of every marked formula
              and function.__module__ == module.__name__}
    assert marked == set(FORMULAS) - {"document_attention"}


@pytest.mark.parametrize(("device", "kernel"), [("cpu", norm.rms_norm), ("cuda", norm.pytorch_rms_norm)])
def test_a_gpu_uses_pytorch_s_norm_and_a_cpu_ours(device, kernel):
    with FakeTensorMode():
        assert implementation(layers.rms_norm.__wrapped__, torch.ones(2, 3, device=device)) == kernel


def test_plain_formulas_switches_single_kernels_off():
    formulas = [layers.apply_rope, layers.gated, layers.cross_entropy_sum]
    kernels = [rope.apply_rope, gated.gated, cross_entropy.cross_entropy_sum]
    x = torch.ones(2)
    assert [implementation(formula.__wrapped__, x) for formula in formulas] == kernels
    with plain_formulas("gated"):
        chosen = [implementation(formula.__wrapped__, x) for formula in formulas]
    assert chosen == [kernels[0], layers.gated.__wrapped__, kernels[2]]
    assert [implementation(formula.__wrapped__, x) for formula in formulas] == kernels


@pytest.mark.parametrize(("dropout", "short"), [(0.0, [384]), (0.1, [])])
def test_a_cpu_uses_short_attention_up_to_384_tokens(dropout, short, monkeypatch):
    seen, original = [], padded_attention.short_attention

    def spy(q_BLQK, *others):
        seen.append(q_BLQK.shape[1])
        return original(q_BLQK, *others)

    monkeypatch.setattr(padded_attention, "MAX_PADDING", 0.0)
    monkeypatch.setattr(padded_attention, "short_attention", spy)
    Documents((0, 384, 769), CPU, dropout).attend(0, *flat_qkv(769))
    assert seen == short
