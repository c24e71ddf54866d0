"""Attention over padded groups of documents, compared with the formula."""

import itertools

import pytest
import torch
from plain_attention import CPU, flat_qkv, plain_attention

from minimind_sft.model.attention import Documents, document_attention
from minimind_sft.model.kernels import padded_attention, short_attention
from minimind_sft.model.kernels.padded_attention import MAX_PADDING, PaddedAttention, similar_lengths


@pytest.mark.parametrize(("short", "block"), [(0, 64), (5, 64), (99, 64), (99, 4)])
@pytest.mark.parametrize("cu_seqlens", [
    (0, 1), (0, 7), (0, 3, 6, 9), (0, 9, 10, 15, 20, 22), (0, 0, 4, 4, 11, 11), (0, 5, 6, 7, 8, 14, 20),
])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_values_and_gradients_equal_the_formula_s(cu_seqlens, short, block, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(short_attention, "BLOCK", block)
    qkv = flat_qkv(cu_seqlens[-1], dtype)
    ours = PaddedAttention(cu_seqlens, qkv[2], short=short)(*qkv)
    formula = document_attention(*qkv, cu_seqlens)
    torch.testing.assert_close(ours, formula, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(formula)
    torch.testing.assert_close(torch.autograd.grad(ours, qkv, weight), torch.autograd.grad(formula, qkv, weight),
                               rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("short", [0, 9999], ids=["flash", "short"])
@pytest.mark.parametrize("window", [1, 2, 5, 11, 12, 30])
@pytest.mark.parametrize("cu_seqlens", [(0, 9, 10, 15, 20, 22), (0, 0, 12, 12, 40), (0, 11, 22)])
def test_with_a_window_values_and_gradients_equal_the_formula_s(cu_seqlens, window, short, monkeypatch):
    """Blocks of 4 positions, so that documents have first blocks, whole ones and the rest of one."""
    monkeypatch.setattr(short_attention, "BLOCK", 4)
    monkeypatch.setattr(padded_attention, "MAX_BLOCK", 4)
    qkv = flat_qkv(cu_seqlens[-1])
    ours = PaddedAttention(cu_seqlens, qkv[2], short=short)(*qkv, window)
    formula = document_attention(*qkv, cu_seqlens, window=window)
    torch.testing.assert_close(ours, formula, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(formula)
    torch.testing.assert_close(torch.autograd.grad(ours, qkv, weight), torch.autograd.grad(formula, qkv, weight),
                               rtol=1e-11, atol=1e-11)


def test_a_band_literally():
    assert (padded_attention.band(3, torch.zeros(1)) == 0).int().tolist() == [
        [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize(("window", "blocks"), [(None, 1), (700, 1), (600, 2), (512, 2), (325, 3)])
def test_documents_longer_than_the_window_are_cut_into_blocks(window, blocks, monkeypatch):
    """A window that no document exceeds changes nothing; below 384 - 64 `short_attention` computes it."""
    calls, original = [], padded_attention.flash_attention
    monkeypatch.setattr(padded_attention, "flash_attention", lambda *args: calls.append(1) or original(*args))
    qkv = flat_qkv(700)
    Documents((0, 700), CPU).attend(0, *qkv, window)
    assert len(calls) == blocks


def test_layers_share_the_mask_of_a_window(monkeypatch):
    """The backward pass of each layer keeps it."""
    made, original = [], padded_attention.band
    monkeypatch.setattr(padded_attention, "band", lambda *args: made.append(args[0]) or original(*args))
    qkv, documents = flat_qkv(900), Documents((0, 450, 900), CPU)
    for layer in range(3):
        documents.attend(layer, *qkv, 400)
    assert made == [400]


def test_documents_of_one_block_several_blocks_and_too_long_for_blocks(monkeypatch):
    """Documents of 64, 65, 384 and 385 tokens, each in its own group."""
    monkeypatch.setattr(padded_attention, "MAX_PADDING", 0.0)
    cu_seqlens = (0, 64, 129, 513, 898)
    qkv = flat_qkv(cu_seqlens[-1])
    ours, formula = Documents(cu_seqlens, CPU).attend(0, *qkv), document_attention(*qkv, cu_seqlens)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(formula)
    torch.testing.assert_close(torch.autograd.grad(ours, qkv, weight), torch.autograd.grad(formula, qkv, weight),
                               rtol=1e-10, atol=1e-10)


def test_similar_lengths_literally():
    assert similar_lengths([10, 100, 9, 0, 95, 10, 30]) == [[2, 0, 5], [6], [4, 1]]
    assert similar_lengths([5, 11, 3]) == [[2, 0], [1]]  # of [3, 5] 8 of 10 are real, with 11 it would be 19 of 33
    assert similar_lengths([]) == similar_lengths([0, 0]) == []


def test_padding_stays_small_and_every_document_is_in_one_group():
    lengths = torch.randint(1, 400, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = similar_lengths(lengths)
    assert sorted(itertools.chain(*groups)) == list(range(200))
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert 1 - sum(lengths[i] for i in group) / padded <= MAX_PADDING
    assert len(groups) < 40


@pytest.mark.parametrize("short", [0, 384])
def test_scores_are_float32_under_autocast_on_the_cpu(short):
    """Uses scores of several hundred, too coarse in bfloat16, whose neighbours of 256 are 255 and 258."""
    q, k, v = (x.detach() for x in flat_qkv(60, torch.float32))
    q, v = 100 * q, v.bfloat16()
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    plain = plain_attention(*exact, (0, 20, 60))
    ours = [x.requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = PaddedAttention((0, 20, 60), v, short=short)(*ours)
        weight = torch.randn_like(out)
        grads = torch.autograd.grad(out, ours, weight)
    assert out.dtype == torch.bfloat16
    wanted = torch.autograd.grad(plain, exact, weight.double())
    for one, other in zip((out, *grads), (plain, *wanted), strict=True):
        assert (one - other).norm() < 0.01 * other.norm()
