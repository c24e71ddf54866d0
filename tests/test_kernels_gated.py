"""SwiGLU's written-out gradient compared with the formula's and with finite differences."""

import pytest
import torch

from minimind_sft.model.kernels.gated import gated
from minimind_sft.model.layers import gated as formula

plain = formula.__wrapped__


def gate_and_up(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    gate, up = (3 * torch.randn(2, 7, 5, dtype=torch.float64)).to(dtype)
    return gate.requires_grad_(), up.requires_grad_()


def test_the_gradient_equals_finite_differences():
    assert torch.autograd.gradcheck(gated, gate_and_up(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_the_formula_s_bit_for_bit(dtype):
    both = gate_and_up(dtype)
    ours, theirs = gated(*both), plain(*both)
    grad = torch.randn(7, 5).to(dtype)
    for one, other in zip((ours, *torch.autograd.grad(ours, both, grad)),
                          (theirs, *torch.autograd.grad(theirs, both, grad)), strict=True):
        assert torch.equal(one, other)


def test_only_gate_and_up_are_saved_for_backward():
    kept, (gate, up) = [], gate_and_up(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda x: x):
        gated(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])
