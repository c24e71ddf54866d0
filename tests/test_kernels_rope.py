"""RoPE's kernel compared with the formula."""

import pytest
import torch

from minimind_sft.model.kernels import rope
from minimind_sft.model.layers import apply_rope

plain = apply_rope.__wrapped__


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_values_and_gradients_equal_the_formula_s(dtype, tolerance):
    torch.manual_seed(0)
    x, grad = torch.randn(2, 5, 3, 16, dtype=dtype)
    x.requires_grad_()
    angle = 7 * torch.rand(5, 1, 8, dtype=dtype)
    turn = 1.5 * angle.cos(), 1.5 * angle.sin()  # 1.5: as with YaRN's attention factor
    ours, formula = rope.apply_rope(x, turn), plain(x, turn)
    torch.testing.assert_close(ours, formula, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.autograd.grad(ours, x, grad), torch.autograd.grad(formula, x, grad),
                               rtol=tolerance, atol=tolerance)


def test_the_input_is_not_saved_for_backward():
    kept, x = [], torch.randn(5, 3, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        rope.apply_rope(x, (torch.ones(5, 1, 8), torch.zeros(5, 1, 8)))
    assert kept == [(5, 1, 8), (5, 1, 8)]
