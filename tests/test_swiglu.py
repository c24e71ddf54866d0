"""SwiGLU's written-out gradient, against autograd's own and finite differences."""

import torch
import torch.nn.functional as F

from minimind_sft.model.layers import gated


def gate_and_up(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return tuple((3 * torch.randn(7, 5, dtype=torch.float64)).to(dtype).requires_grad_() for _ in range(2))


def test_its_gradient_is_right():
    assert torch.autograd.gradcheck(gated, gate_and_up(torch.float64))


def test_it_computes_what_pytorch_computes_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        both = gate_and_up(dtype)
        ours, theirs = gated(*both), F.silu(both[0]) * both[1]
        grad = torch.randn(7, 5).to(dtype)
        for one, other in zip((ours, *torch.autograd.grad(ours, both, grad)),
                              (theirs, *torch.autograd.grad(theirs, both, grad)), strict=True):
            assert torch.equal(one, other)


def test_only_gate_and_up_are_kept():
    kept, (gate, up) = [], gate_and_up(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda x: x):
        gated(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])
