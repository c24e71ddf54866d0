"""Which implementation runs; and that a whole model computes the same by its formulas and by its kernels."""

import pytest
import torch
from plain_attention import CPU, flat_qkv
from tiny_decoder import TINY, TINY_MOE, build, random_batch
from torch._subclasses import FakeTensorMode

from minimind_sft.model import layers, moe
from minimind_sft.model.attention import Documents
from minimind_sft.model.kernels import cross_entropy, gated, norm, padded_attention, rope
from minimind_sft.model.kernels.selection import FORMULAS, implementation, plain_formulas


@pytest.mark.parametrize("config", [TINY, TINY_MOE], ids=["dense", "experts"])
def test_a_model_computes_the_same_by_its_formulas_and_by_its_kernels(config):
    model, batch = build(config, torch.float64), random_batch([9, 30, 1, 51])

    def results() -> list[torch.Tensor]:
        losses = model(*batch)
        return [*losses, *torch.autograd.grad(sum(losses), list(model.parameters()))]

    fast = results()
    with plain_formulas():
        plain = results()
    assert any(not torch.equal(one, other) for one, other in zip(fast, plain, strict=True)), "both were kernels"
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)


def test_every_formula_has_a_name_in_the_list():
    marked = {name for module in (layers, moe) for name, function in vars(module).items()
              if hasattr(function, "__wrapped__") and function.__module__ == module.__name__}
    assert marked == set(FORMULAS) - {"document_attention"}


@pytest.mark.parametrize(("device", "kernel"), [("cpu", norm.rms_norm), ("cuda", norm.pytorch_rms_norm)])
def test_pytorchs_norm_runs_on_a_gpu_and_ours_on_a_cpu(device, kernel):
    with FakeTensorMode():
        assert implementation(layers.rms_norm.__wrapped__, torch.ones(2, 3, device=device)) == kernel


def test_formulas_that_are_switched_off_run_as_they_are_written():
    formulas = [layers.apply_rope, layers.gated, layers.cross_entropy_sum]
    kernels = [rope.apply_rope, gated.gated, cross_entropy.cross_entropy_sum]
    x = torch.ones(2)
    assert [implementation(formula.__wrapped__, x) for formula in formulas] == kernels
    with plain_formulas("gated"):
        chosen = [implementation(formula.__wrapped__, x) for formula in formulas]
    assert chosen == [kernels[0], layers.gated.__wrapped__, kernels[2]]
    assert [implementation(formula.__wrapped__, x) for formula in formulas] == kernels


@pytest.mark.parametrize(("dropout", "short"), [(0.0, [384]), (0.1, [])])
def test_a_cpu_keeps_the_weights_of_documents_of_up_to_384_tokens(dropout, short, monkeypatch):
    seen, original = [], padded_attention.short_attention

    def spy(q_BLQK, k_BLK, v_BLK):
        seen.append(q_BLQK.shape[1])
        return original(q_BLQK, k_BLK, v_BLK)

    monkeypatch.setattr(padded_attention, "MAX_PADDING", 0.0)
    monkeypatch.setattr(padded_attention, "short_attention", spy)
    Documents((0, 384, 769), CPU, dropout).attend(0, *flat_qkv(769))
    assert seen == short
