"""RMSNorm against PyTorch's own, and its gradient against finite differences."""

import torch
import torch.nn.functional as F

from minimind_sft.model.layers import RMSNorm


def norm(size: int, dtype: torch.dtype) -> RMSNorm:
    torch.manual_seed(0)
    module = RMSNorm(size, eps=1e-2).to(dtype)  # a large eps, so that a wrong place of it shows
    torch.nn.init.normal_(module.weight)
    return module


def test_the_value_is_literally_x_over_its_root_mean_square():
    module = RMSNorm(2, eps=0.5).double()
    torch.nn.init.constant_(module.weight, 3.0)
    out = module(torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64))
    # mean square 2.5, plus eps 3: 3 / sqrt(3) = sqrt(3)
    torch.testing.assert_close(out, torch.tensor([[3 ** 0.5, 2 * 3 ** 0.5], [0, 0]], dtype=torch.float64))


def test_gradients_are_those_of_pytorch_and_of_finite_differences():
    module = norm(6, torch.float64)
    x = torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(module, {"weight": w}, x),
                                    (x, module.weight))
    weights, direction = (x, module.weight), torch.randn(5, 3, 6, dtype=torch.float64)
    theirs = F.rms_norm(x, (6,), module.weight, 1e-2)
    torch.testing.assert_close(torch.autograd.grad(module(x), weights, direction),
                               torch.autograd.grad(theirs, weights, direction), rtol=1e-12, atol=1e-12)


def test_a_batch_without_rows_has_zero_gradient():
    module = norm(6, torch.float32)
    module(torch.randn(0, 6)).sum().backward()
    assert module.weight.grad.tolist() == [0.0] * 6


def test_bfloat16_inputs_are_normalised_in_float32():
    module = norm(64, torch.float32)
    x = torch.randn(9, 64).bfloat16()
    out = module(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, module(x.float()), rtol=0, atol=0)
    half = norm(64, torch.bfloat16)
    expected = F.rms_norm(x.float(), (64,), half.weight.float(), 1e-2)
    assert half(x).dtype == torch.bfloat16
    torch.testing.assert_close(half(x).float(), expected, rtol=2**-8, atol=0)


def test_autocast_changes_neither_the_value_nor_the_gradient():
    module = norm(64, torch.float32)
    x, direction = torch.randn(2, 9, 64)
    x.requires_grad_()
    plain = module(x)
    gradients = torch.autograd.grad(plain, (x, module.weight), direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = module(x)
        torch.testing.assert_close(torch.autograd.grad(under, (x, module.weight), direction), gradients, rtol=0, atol=0)
    torch.testing.assert_close(under, plain, rtol=0, atol=0)
