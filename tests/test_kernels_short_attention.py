"""Attention over short sequences, with its gradient written out."""

import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minimind_sft.model.attention import causal_attention
from minimind_sft.model.kernels import short_attention as module
from minimind_sft.model.kernels.short_attention import short_attention

SEQUENCES, QUERIES, HEAD_DIM = 3, 2, 6


def padded_qkv(positions: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = (SEQUENCES, positions, QUERIES, HEAD_DIM), *[(SEQUENCES, positions, HEAD_DIM)] * 2
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Each sequence has one key/value head; its queries per position are the query heads of that head."""
    return torch.stack([
        causal_attention(q[b], k[b, :, None], v[b, :, None], window=window) for b in range(SEQUENCES)])


@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("positions", [1, 4, 9])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 6, 99])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_values_and_gradients_equal_the_formula_s(positions, window, block, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    qkv = padded_qkv(positions, dtype)
    ours, plain = short_attention(*qkv, window), formula(*qkv, window)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad(ours, qkv, weight), torch.autograd.grad(plain, qkv, weight),
                               rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 2])
def test_the_gradient_equals_finite_differences(window, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    assert torch.autograd.gradcheck(lambda *qkv: short_attention(*qkv, window), padded_qkv(4))


def test_with_a_window_no_block_multiplies_positions_that_none_of_its_queries_reads():
    """256 positions and a window of 10: the first block has 64 columns, each of the other three 9 more."""
    with FlopCounterMode(display=False) as counter:
        short_attention(*padded_qkv(256), window=10)
    products_per_column = SEQUENCES * 64 * QUERIES * HEAD_DIM
    assert counter.get_total_flops() == 2 * 2 * products_per_column * (64 + 3 * 73)


@pytest.mark.parametrize(("wanted", "kept"), [(True, [0, 1, 2, 3]), (False, [0, 1, 1, 1])])
def test_attention_weights_are_kept_only_if_a_gradient_is_needed(wanted, kept, monkeypatch):
    """Counts the earlier blocks' weights that are alive at each softmax; the loop still holds the last ones."""
    made, alive = [], []
    softmax = torch.Tensor.softmax

    def spy(scores_BWP, dim):
        alive.append(sum(one() is not None for one in made))
        weights_BWP = softmax(scores_BWP, dim)
        made.append(weakref.ref(weights_BWP))
        return weights_BWP

    monkeypatch.setattr(torch.Tensor, "softmax", spy)
    short_attention(*(x.detach().requires_grad_(wanted) for x in padded_qkv(256)))
    assert alive == kept
