"""The kernels of the norms compared with the formulas, and the written-out gradient with finite differences."""

import pytest
import torch
import torch.nn.functional as F

from minimind_sft.model.kernels import norm
from minimind_sft.model.layers import LayerNorm, RMSNorm, layer_norm, rms_norm

plain = rms_norm.__wrapped__
LARGE_EPS = 1e-2  # large, so that a misplaced eps shows


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns x, the weight, and a gradient of the output."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 5, 3, 6, dtype=dtype)
    return x.requires_grad_(), torch.randn(6, dtype=dtype, requires_grad=True), grad


@pytest.mark.parametrize("kernel", [norm.rms_norm, norm.pytorch_rms_norm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_the_formula_s(kernel, dtype, tolerance):
    x, weight, grad = inputs(dtype)
    ours, formula = kernel(x, weight, LARGE_EPS), plain(x, weight, LARGE_EPS)
    torch.testing.assert_close(ours, formula, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, weight), grad),
                               torch.autograd.grad(formula, (x, weight), grad), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_layer_norm_s_values_and_gradients_equal_the_formula_s(dtype, tolerance):
    x, weight, grad = inputs(dtype)
    arguments = (x, weight, torch.randn(6, dtype=dtype, requires_grad=True))
    ours, formula = (form(*arguments, LARGE_EPS) for form in (norm.pytorch_layer_norm, layer_norm.__wrapped__))
    torch.testing.assert_close(ours, formula, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.autograd.grad(ours, arguments, grad),
                               torch.autograd.grad(formula, arguments, grad), rtol=tolerance, atol=tolerance)


def test_the_gradient_equals_finite_differences():
    x, weight, _ = inputs()
    assert torch.autograd.gradcheck(lambda x, weight: norm.rms_norm(x, weight, LARGE_EPS), (x, weight))


def test_a_batch_without_rows_has_zero_gradient():
    _, weight, _ = inputs()
    norm.rms_norm(torch.randn(0, 6, dtype=torch.float64), weight, LARGE_EPS).sum().backward()
    assert weight.grad.tolist() == [0.0] * 6


def test_autocast_changes_neither_the_value_nor_the_gradient():
    x, weight, grad = inputs(torch.float32)
    exact = norm.rms_norm(x, weight, LARGE_EPS)
    gradients = torch.autograd.grad(exact, (x, weight), grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = norm.rms_norm(x, weight, LARGE_EPS)
        torch.testing.assert_close(torch.autograd.grad(under, (x, weight), grad), gradients, rtol=0, atol=0)
    torch.testing.assert_close(under, exact, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_the_module_normalises_bfloat16_inputs_in_float32(kind):
    torch.manual_seed(0)
    module, x = kind(64, LARGE_EPS), torch.randn(9, 64).bfloat16()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    out = module(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, module(x.float()), rtol=0, atol=0)
    module.bfloat16()
    exact = {RMSNorm: F.rms_norm, LayerNorm: F.layer_norm}[kind](
        x.float(), (64,), *(parameter.float() for parameter in module.parameters()), eps=LARGE_EPS)
    assert module(x).dtype == torch.bfloat16
    torch.testing.assert_close(module(x).float(), exact, rtol=2**-8, atol=0)
