"""Attention over documents, against a softmax written out."""

import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from plain_attention import CPU, HEAD_DIM, HEADS, KV_HEADS, flat_qkv, plain_attention

from minimind_sft.model.attention import Documents
from minimind_sft.model.kernels import padded_attention, selection, short_attention
from minimind_sft.model.kernels.padded_attention import MAX_PADDING, similar_lengths


@pytest.mark.parametrize(("short", "block"), [(0, 64), (5, 64), (99, 64), (99, 4)])
@pytest.mark.parametrize("cu_seqlens", [
    (0, 1), (0, 7), (0, 3, 6, 9), (0, 9, 10, 15, 20, 22), (0, 0, 4, 4, 11, 11), (0, 5, 6, 7, 8, 14, 20),
])
def test_documents_see_their_own_past_only(cu_seqlens, short, block, monkeypatch):
    monkeypatch.setattr(selection, "SHORT", short)
    monkeypatch.setattr(short_attention, "BLOCK", block)
    qkv = flat_qkv(cu_seqlens[-1])
    ours = Documents(cu_seqlens, CPU).attend(0, *qkv)
    plain = plain_attention(*qkv, cu_seqlens)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), qkv),
                               torch.autograd.grad((plain * weight).sum(), qkv), rtol=1e-11, atol=1e-11)


def test_documents_of_one_block_of_several_and_too_long_for_blocks(monkeypatch):
    """Of 64, 65, 384 and 385 tokens, against PyTorch's attention."""
    monkeypatch.setattr(padded_attention, "MAX_PADDING", 0.0)
    cu_seqlens = (0, 64, 129, 513, 898)
    qkv = flat_qkv(cu_seqlens[-1])
    ours = Documents(cu_seqlens, CPU).attend(0, *qkv)
    pieces = [
        F.scaled_dot_product_attention(*(x[start:end].transpose(0, 1) for x in qkv), is_causal=True, enable_gqa=True)
        for start, end in itertools.pairwise(cu_seqlens)
    ]
    plain = torch.cat(pieces, 1).transpose(0, 1)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), qkv),
                               torch.autograd.grad((plain * weight).sum(), qkv), rtol=1e-10, atol=1e-10)


def test_documents_of_up_to_384_tokens_are_short(monkeypatch):
    seen, original = [], short_attention.short_attention

    def spy(q_BLQK, k_BLK, v_BLK):
        seen.append(q_BLQK.shape[1])
        return original(q_BLQK, k_BLK, v_BLK)

    monkeypatch.setattr(padded_attention, "MAX_PADDING", 0.0)
    monkeypatch.setattr(padded_attention, "short_attention", spy)
    Documents((0, 384, 769), CPU).attend(0, *flat_qkv(769))
    assert seen == [384]


@pytest.mark.parametrize(("wanted", "kept"), [(True, [0, 1, 2, 3]), (False, [0, 1, 1, 1])])
def test_the_weights_of_a_block_stay_only_where_a_gradient_is_wanted(wanted, kept, monkeypatch):
    """Counted at each block's softmax: those before it; the last one is in the loop's hands still."""
    made, alive = [], []
    softmax = torch.Tensor.softmax

    def spy(scores_BWP, dim):
        alive.append(sum(one() is not None for one in made))
        weights_BWP = softmax(scores_BWP, dim)
        made.append(weakref.ref(weights_BWP))
        return weights_BWP

    monkeypatch.setattr(torch.Tensor, "softmax", spy)
    Documents((0, 256), CPU).attend(0, *(x.detach().requires_grad_(wanted) for x in flat_qkv(256)))
    assert alive == kept


@pytest.mark.parametrize("cu_seqlens", [(0,), (0, 0)])
def test_no_tokens_at_all_is_no_error(cu_seqlens):
    qkv = flat_qkv(0)
    out = Documents(cu_seqlens, CPU).attend(0, *qkv)
    out.sum().backward()
    assert out.shape == (0, HEADS, HEAD_DIM)
    assert all(x.grad is not None for x in qkv)


def test_positions_and_document_of_each_token():
    documents = Documents((0, 3, 3, 5, 6), CPU)
    assert documents.positions_T.tolist() == [0, 1, 2, 0, 1, 0]
    assert documents.document_T.tolist() == [0, 0, 0, 2, 2, 3]
    assert documents.lengths == [3, 0, 2, 1]


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
def test_scores_are_float32_under_autocast_on_the_cpu(short, monkeypatch):
    """Scores of some hundred, whose softmax bfloat16 would get wrong: its neighbours of 256 are 255 and 258."""
    monkeypatch.setattr(selection, "SHORT", short)
    q, k, v = (x.detach() for x in flat_qkv(60, torch.float32))
    q, v = 100 * q, v.bfloat16()
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    plain = plain_attention(*exact, (0, 20, 60))
    ours = [x.requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Documents((0, 20, 60), CPU).attend(0, *ours)
        weight = torch.randn_like(out)
        grads = torch.autograd.grad(out, ours, weight)
    assert out.dtype == torch.bfloat16
    wanted = torch.autograd.grad(plain, exact, weight.double())
    for one, other in zip((out, *grads), (plain, *wanted), strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("length", [200, 2000])
def test_dropout_drops_attention_weights_and_keeps_their_mean(length):
    q, k, _ = flat_qkv(2000, torch.float32)
    ones = torch.ones(2000, KV_HEADS, HEAD_DIM)
    torch.manual_seed(0)
    dropped = Documents(range(0, 2001, length), CPU, dropout=0.4).attend(0, q, k, ones)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropped[0].unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    kept = Documents(range(0, 2001, length), CPU).attend(0, q, k, ones)
    torch.testing.assert_close(kept, torch.ones_like(kept))
