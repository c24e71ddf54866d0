"""All experts at once, grouped and in a loop, compared with the formula."""

import pytest
import torch

from minimind_sft.model import lora, moe
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kernels import grouped_experts
from minimind_sft.model.kernels.grouped_experts import adapted_mixture, grouped_mm, looped_mm, mixture
from minimind_sft.model.kernels.selection import can_be_grouped

EXPERTS = 4
plain = moe.mixture.__wrapped__


def problem(tokens: int, chosen: int, dtype: torch.dtype, hidden: int = 16, width: int = 24) -> list[torch.Tensor]:
    """Returns x, weights and indices of the chosen experts, gate, up and down; expert 3 is never chosen."""
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(EXPERTS - 1)[:chosen] for _ in range(tokens)]) if tokens else torch.empty(
        0, chosen, dtype=torch.int64)
    shapes = (tokens, hidden), (tokens, chosen), (EXPERTS, width, hidden), (EXPERTS, width, hidden), (
        EXPERTS, hidden, width)
    x, weight, *matrices = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return [x, weight, index, *matrices]


@pytest.mark.parametrize("tokens", [0, 13])
@pytest.mark.parametrize("chosen", [1, 2, 3])
@pytest.mark.parametrize(("multiply", "dtype", "tolerance"), [
    (looped_mm, torch.float64, 1e-12), (looped_mm, torch.float32, 1e-3), (grouped_mm, torch.float32, 1e-3)])
def test_values_and_gradients_equal_the_formula_s(tokens, chosen, multiply, dtype, tolerance):
    tensors = problem(tokens, chosen, dtype)
    if multiply is grouped_mm and not tokens:
        pytest.skip("without tokens there is nothing to launch, and the loop runs")
    learned = [tensor for tensor in tensors if tensor.requires_grad]
    ours, formula = mixture(*tensors, multiply=multiply), plain(*tensors)
    torch.testing.assert_close(ours, formula, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(formula)
    torch.testing.assert_close(torch.autograd.grad(ours, learned, grad), torch.autograd.grad(formula, learned, grad),
                               rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [0, 13])
@pytest.mark.parametrize("changed", [(True, True, True), (False, True, False), (True, False, True)])
@pytest.mark.parametrize(("multiply", "dtype", "tolerance"), [
    (looped_mm, torch.float64, 1e-11), (grouped_mm, torch.float32, 1e-2)])
def test_experts_with_adapters_equal_the_formula(tokens, changed, multiply, dtype, tolerance):
    """The formula is also the mixture of W + B A; an unchanged stack has rank 0."""
    if multiply is grouped_mm and not tokens:
        pytest.skip("without tokens there is nothing to launch, and the loop runs")
    x, weight, index, *stacks = problem(tokens, 2, dtype)
    matrices, merged = [], []
    for w_EOI, wanted in zip(stacks, changed, strict=True):
        rank = 4 if wanted else 0
        a_ErI, b_EOr = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in (
            (EXPERTS, rank, w_EOI.shape[2]), (EXPERTS, w_EOI.shape[1], rank)))
        matrices += [w_EOI.detach(), a_ErI, b_EOr]
        merged.append(w_EOI.detach() + b_EOr @ a_ErI)
    learned = [x, weight, *(matrix for matrix in matrices if matrix.requires_grad and matrix.numel())]
    ours = adapted_mixture(x, weight, index, *matrices, multiply=multiply, dropout=torch.nn.Identity())
    formula = lora.adapted_mixture.__wrapped__(x, weight, index, *matrices, dropout=torch.nn.Identity())
    grad = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, learned, grad)
    for expected in (formula, plain(x, weight, index, *merged)):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, learned, grad),
                                   rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("ends", [(3, 3, 9, 13), (0, 0, 0, 13), (13, 13, 13, 13), (0, 0, 0, 0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
def test_the_grouped_product_equals_the_loop(ends, dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(ends[-1], 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(EXPERTS, 24, 16, dtype=dtype, requires_grad=True)
    ends = torch.tensor(ends, dtype=torch.int32)
    ours, loop = grouped_mm(x, weight, ends), looped_mm(x, weight, ends)
    torch.testing.assert_close(ours, loop, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(loop)
    for one, other in zip(torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(loop, (x, weight), grad),
                          strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("inputs", "width", "dtype", "grouped"), [
    (16, 24, torch.float32, True), (16, 24, torch.bfloat16, True), (16, 24, torch.float64, False),
    (6, 8, torch.bfloat16, False), (8, 4, torch.bfloat16, False), (6, 4, torch.float32, False),
])
def test_experts_are_grouped_if_rows_are_multiples_of_16_bytes(inputs, width, dtype, grouped):
    assert can_be_grouped(*problem(3, 1, dtype, inputs, width)) is grouped
    assert not can_be_grouped(*problem(0, 1, dtype, inputs, width))


@pytest.mark.parametrize(("rank", "dtype", "grouped"), [
    (0, torch.bfloat16, True), (8, torch.bfloat16, True), (12, torch.bfloat16, False), (12, torch.float32, True)])
def test_experts_with_adapters_are_grouped_if_the_rank_allows_it(rank, dtype, grouped):
    tensors = problem(3, 1, dtype)
    assert can_be_grouped(*tensors, torch.empty(EXPERTS, rank, 16), torch.empty(EXPERTS, 24, rank)) is grouped


def test_under_autocast_experts_multiply_in_bfloat16_with_float32_gradients(monkeypatch):
    seen = []
    original = grouped_experts.F.grouped_mm
    monkeypatch.setattr(grouped_experts.F, "grouped_mm", lambda x, w, offs: seen.append((x.dtype, w.dtype)) or original(
        x, w, offs=offs))
    module = moe.MixtureOfExperts(ModelConfig(hidden_size=16, num_attention_heads=1, num_key_value_heads=1,
                                              use_moe=True, moe_intermediate_size=24))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(torch.randn(13, 16))
    assert out.dtype == torch.bfloat16 and seen == [(torch.bfloat16, torch.bfloat16)] * 3
    out.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())
