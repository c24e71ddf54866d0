"""Products with packed weights, compared with the product in float64."""

import pytest
import torch
from tiny_generation import half_needed
from torch import Tensor

from minimind_sft.inference import packed
from minimind_sft.inference.packed import FEW_ROWS, MANY_ROWS, Bfloat16Product, HalfProduct, Pack, best_pack, plain

ROWS = [1, 2, FEW_ROWS, FEW_ROWS + 1, 33]
bfloat16_needed = pytest.mark.skipif(best_pack(torch.zeros(1, dtype=torch.bfloat16)) is not Bfloat16Product,
                                     reason="this processor has no oneDNN product for bfloat16")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def relative_error(pack: Pack, weights: list[Tensor], rows: int, bias: Tensor | None = None) -> float:
    """Returns the largest error of the product, divided by the standard deviation of the results."""
    x_SK = random(rows, weights[0].shape[1])
    expected = x_SK.double() @ torch.cat(weights).double().T + (0 if bias is None else bias.double())
    return float((pack(weights, bias)(x_SK).double() - expected).abs().max() / expected.std())


def biases(weights: list[Tensor]) -> list[Tensor | None]:
    """Returns no bias, and one as large as the products."""
    size = weights[0].float().std() * weights[0].shape[1] ** 0.5
    return [None, (random(sum(map(len, weights))) * size).to(weights[0].dtype)]


@pytest.mark.parametrize("rows", ROWS)
@half_needed
def test_weights_exact_in_float16_give_float32_precision(rows: int):
    weights = [(random(n, 96) * 0.02).half().float() for n in (40, 7)]
    assert HalfProduct(weights).parts == 1
    assert all(relative_error(HalfProduct, weights, rows, bias) < 2e-6 for bias in biases(weights))


@pytest.mark.parametrize("size", [1e-12, 0.02, 1.0, 1e9])
@pytest.mark.parametrize("rows", [3, MANY_ROWS])
@half_needed
def test_weights_of_any_size_give_float32_precision(size: float, rows: int):
    weights = [random(40, 96) * size, random(7, 96) * size]
    assert HalfProduct(weights).parts == 2
    assert all(relative_error(HalfProduct, weights, rows, bias) < 2e-6 for bias in biases(weights))


@pytest.mark.parametrize("rows", [3, MANY_ROWS])
@half_needed
def test_bfloat16_weights_of_very_different_sizes_give_float32_precision(rows: int):
    weights = [(random(40, 96) * torch.logspace(-13, 0, 96)).bfloat16()]
    assert HalfProduct(weights).parts == 2
    assert all(relative_error(HalfProduct, weights, rows, bias) < 2e-6 for bias in biases(weights))


@half_needed
def test_bfloat16_weights_are_packed_exactly_in_one_float16():
    weights = [(random(40, 96) * torch.logspace(-5, 0, 96)).bfloat16()]
    assert HalfProduct(weights).parts == 1
    one = HalfProduct(weights)(torch.eye(96))  # each row of the identity selects the weights of one input
    assert torch.equal(one, weights[0].float().T)


@half_needed
def test_weights_of_zero_give_zero():
    assert torch.equal(HalfProduct([torch.zeros(5, 8)])(random(2, 8)), torch.zeros(2, 5))


@pytest.mark.parametrize("rows", ROWS)
@bfloat16_needed
def test_bfloat16_arithmetic_is_used_only_for_many_rows(rows: int):
    weights = [(random(n, 96) * 0.02).bfloat16() for n in (40, 7)]
    for bias in biases(weights):
        error = relative_error(Bfloat16Product, weights, rows, bias)
        assert error < 2e-6 if rows <= FEW_ROWS else 1e-4 < error < 0.03


def test_the_plain_product_concatenates_the_outputs_of_the_weights():
    weights, x_SK, bias = [random(4, 6), random(3, 6)], random(2, 6), random(7)
    assert torch.allclose(plain(weights)(x_SK), x_SK @ torch.cat(weights).T, atol=1e-6)
    assert torch.allclose(plain(weights, bias)(x_SK), x_SK @ torch.cat(weights).T + bias, atol=1e-6)


@pytest.mark.parametrize(("dtype", "with_onednn", "without"), [
    (torch.float32, HalfProduct, HalfProduct), (torch.bfloat16, Bfloat16Product, HalfProduct),
    (torch.float16, HalfProduct, HalfProduct), (torch.float64, None, None)])
def test_dtype_and_processor_decide_how_weights_are_packed(dtype: torch.dtype, with_onednn: Pack | None,
                                                           without: Pack | None, monkeypatch):
    monkeypatch.setattr(packed, "_half_works", lambda: True)
    for works, pack in ((True, with_onednn), (False, without)):
        monkeypatch.setattr(packed, "_onednn_works", lambda works=works: works)
        assert best_pack(torch.zeros(1, dtype=dtype)) is pack


@pytest.mark.parametrize("fault", [RuntimeError("no engine"), AttributeError("no such operator"), None])
def test_without_a_working_operator_nothing_is_packed(fault: Exception | None, monkeypatch):
    def product(*_):
        if fault:
            raise fault
        return torch.ones(1, 24)  # an operator that gives wrong numbers

    monkeypatch.setattr(HalfProduct, "__call__", product)
    packed._half_works.cache_clear()
    assert best_pack(torch.zeros(1)) is None
    packed._half_works.cache_clear()
