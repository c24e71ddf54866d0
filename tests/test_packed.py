"""Products with packed weights, compared with the product in float64; their rows do not depend on each other."""

import pytest
import torch
from tiny_generation import half_needed
from torch import Tensor

from minimind_sft.inference import packed
from minimind_sft.inference.packed import (
    HalfProduct,
    OneDNNProduct,
    Pack,
    best_pack,
    half_scale,
    pack,
    pack_for_few_rows,
    plain,
)

ROWS = [1, 2, 5, 33]
bfloat16_needed = pytest.mark.skipif(best_pack(torch.zeros(1)) is None or not packed._bfloat16_works(),
                                     reason="this processor does not multiply bfloat16")


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
@pytest.mark.parametrize("size", [1.0, 2.0**-40, 2.0**90])
@half_needed
def test_weights_exact_in_float16_give_float32_precision(rows: int, size: float):
    weights = [random(n, 96).half().float() * size for n in (40, 7)]
    assert isinstance(pack(weights), HalfProduct)
    assert all(relative_error(pack, weights, rows, bias) < 2e-6 for bias in biases(weights))


@pytest.mark.parametrize("size", [1e-12, 0.02, 1.0, 1e9])
@pytest.mark.parametrize("rows", ROWS)
@half_needed
def test_weights_of_any_size_give_float32_precision(size: float, rows: int):
    weights = [random(40, 96) * size, random(7, 96) * size]
    assert isinstance(pack(weights), OneDNNProduct)
    assert all(relative_error(pack, weights, rows, bias) < 2e-6 for bias in biases(weights))


@pytest.mark.parametrize("rows", ROWS)
@half_needed
def test_bfloat16_weights_of_very_different_sizes_give_float32_precision(rows: int, monkeypatch):
    monkeypatch.setattr(packed, "_bfloat16_works", lambda: False)
    weights = [(random(40, 96) * torch.logspace(-13, 0, 96)).bfloat16()]
    assert isinstance(pack(weights), OneDNNProduct)
    assert all(relative_error(pack, weights, rows, bias) < 2e-6 for bias in biases(weights))


@half_needed
def test_bfloat16_weights_that_float16_can_hold_are_packed_exactly(monkeypatch):
    monkeypatch.setattr(packed, "_bfloat16_works", lambda: False)
    weights = [(random(40, 96) * torch.logspace(-5, 0, 96)).bfloat16()]
    one = pack(weights)(torch.eye(96))  # each row of the identity selects the weights of one input
    assert isinstance(pack(weights), HalfProduct) and torch.equal(one, weights[0].float().T)


@half_needed
def test_both_operators_of_fbgemm_give_the_same_bits(monkeypatch):
    weight, bias, x_TI = random(40, 96).half().float(), random(40), random(9, 96)
    one_thread = HalfProduct(weight, bias, 0.5)(x_TI)
    monkeypatch.delattr(torch, packed.ONE_THREAD_OPERATOR, raising=False)
    assert torch.equal(HalfProduct(weight, bias, 0.5)(x_TI), one_thread)


@half_needed
def test_rows_have_the_same_bits_on_both_sides_of_the_limit_for_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(packed, "FEW_PRODUCTS", 5 * 40 * 96)
    product, x_TI = HalfProduct(random(40, 96).half().float(), random(40)), random(9, 96)
    assert product._all_threads is not None
    assert torch.equal(product(x_TI[:5]), product(x_TI)[:5])


@half_needed
def test_weights_of_zero_give_zero():
    assert torch.equal(pack([torch.zeros(5, 8)])(random(2, 8)), torch.zeros(2, 5))


@pytest.mark.parametrize(("weights", "scale"), [
    ([0.0, 0.0], 1.0), ([1.0, 65504.0], 1.0), ([2.0**-24], 1.0), ([2.0**-25], 2.0**39), ([65536.0, 1.0], 2.0**-2),
    ([1.0, 2.0**-40], None), ([1.0 + 2.0**-11], None), ([float("nan")], None), ([float("inf")], 1.0)])
def test_scale_with_which_float16_holds_all_weights(weights: list[float], scale: float | None):
    assert half_scale(torch.tensor([weights])) == scale


@pytest.mark.parametrize("rows", ROWS)
@bfloat16_needed
def test_many_bfloat16_weights_are_multiplied_in_bfloat16(rows: int, monkeypatch):
    weights = [(random(n, 96) * 0.02).bfloat16() for n in (40, 7)]
    assert isinstance(pack(weights), HalfProduct)
    monkeypatch.setattr(packed, "SMALL", 10)
    assert all(1e-4 < relative_error(pack, weights, rows, bias) < 0.03 for bias in biases(weights))


@bfloat16_needed
def test_few_rows_are_multiplied_in_float32_if_float16_holds_the_weights(monkeypatch):
    monkeypatch.setattr(packed, "SMALL", 10)
    half, wide = random(40, 96).bfloat16(), (random(40, 96) * torch.logspace(-13, 0, 96)).bfloat16()
    assert isinstance(pack_for_few_rows([half]), HalfProduct) and isinstance(pack_for_few_rows([wide]), OneDNNProduct)
    assert relative_error(pack_for_few_rows, [half], 5, None) < 2e-6 < relative_error(pack, [half], 5, None)


@pytest.mark.parametrize("form", [pack, pack_for_few_rows])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 47), (3, 20), (576, 192), (1536, 576), (1410, 33)])
@pytest.mark.parametrize(("dtype", "exact_in_half"), [
    (torch.float32, True), (torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)])
@half_needed
def test_a_row_gets_the_same_bits_whichever_rows_are_beside_it(inputs: int, outputs: int, dtype: torch.dtype,
                                                              exact_in_half: bool, form: Pack, monkeypatch):
    monkeypatch.setattr(packed, "SMALL", 10)
    weight = random(outputs, inputs).half().float() * (1.0 if exact_in_half else 1.001)
    product, x_TI = form([weight.to(dtype)], random(outputs).to(dtype)), random(67, inputs)
    together = product(x_TI)
    for start, end in [(0, 1), (66, 67), (5, 7), (9, 12), (1, 17), (3, 20), (2, 66)]:
        assert torch.equal(product(x_TI[start:end]), together[start:end])


def test_the_plain_product_concatenates_the_outputs_of_the_weights():
    weights, x_SK, bias = [random(4, 6), random(3, 6)], random(2, 6), random(7)
    assert torch.allclose(plain(weights)(x_SK), x_SK @ torch.cat(weights).T, atol=1e-6)
    assert torch.allclose(plain(weights, bias)(x_SK), x_SK @ torch.cat(weights).T + bias, atol=1e-6)


@pytest.mark.parametrize(("dtype", "packs"), [
    (torch.float32, True), (torch.bfloat16, True), (torch.float16, True), (torch.float64, False)])
def test_dtype_and_build_decide_whether_weights_are_packed(dtype: torch.dtype, packs: bool, monkeypatch):
    for half_works, float32_works in [(True, True), (True, False), (False, True)]:
        monkeypatch.setattr(packed, "_half_works", lambda works=half_works: works)
        monkeypatch.setattr(packed, "_float32_works", lambda works=float32_works: works)
        expected = pack if packs and half_works and float32_works else None
        assert best_pack(torch.zeros(1, dtype=dtype)) is expected


@pytest.mark.parametrize(("product", "works"), [(HalfProduct, packed._half_works),
                                                (OneDNNProduct, packed._float32_works)])
@pytest.mark.parametrize("fault", [RuntimeError("no engine"), AttributeError("no such operator"), None])
def test_without_a_working_operator_nothing_is_packed(product: type, works, fault: Exception | None, monkeypatch):
    def multiply(*_):
        if fault:
            raise fault
        return torch.ones(1, 24)  # an operator that gives wrong numbers

    monkeypatch.setattr(product, "__call__", multiply)
    works.cache_clear()
    assert best_pack(torch.zeros(1)) is None
    works.cache_clear()
