"""Attention over documents and over the KV cache, against a softmax written out."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

from minimind_sft.config import ModelConfig
from minimind_sft.model import attention
from minimind_sft.model.attention import MAX_PADDING, Documents, KVCache, similar_lengths

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 6
CPU = torch.device("cpu")


def flat_qkv(tokens: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(tokens, heads, HEAD_DIM, dtype=dtype, requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)]


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: tuple[int, ...]) -> torch.Tensor:
    """Token by token and head by head; query heads 0, 1 read key/value head 0 and heads 2, 3 head 1."""
    out = torch.zeros_like(q)
    rows = []
    for start, end in itertools.pairwise(cu_seqlens):
        for t in range(start, end):
            heads = []
            for h in range(HEADS):
                past = slice(start, t + 1)
                scores = k[past, h // 2] @ q[t, h] / math.sqrt(HEAD_DIM)
                heads.append(scores.softmax(0) @ v[past, h // 2])
            rows.append(torch.stack(heads))
    return torch.stack(rows) if rows else out


@pytest.mark.parametrize("cu_seqlens", [
    (0, 1), (0, 7), (0, 3, 6, 9), (0, 9, 10, 15, 20, 22), (0, 0, 4, 4, 11, 11), (0, 5, 6, 7, 8, 14, 20),
])
def test_documents_see_their_own_past_only(cu_seqlens):
    qkv = flat_qkv(cu_seqlens[-1])
    ours = Documents(cu_seqlens, CPU).attend(0, *qkv)
    plain = plain_attention(*qkv, cu_seqlens)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), qkv),
                               torch.autograd.grad((plain * weight).sum(), qkv), rtol=1e-11, atol=1e-11)


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
    assert similar_lengths([10, 100, 9, 0, 95, 10, 50]) == [[2, 0, 5], [6], [4, 1]]
    assert similar_lengths([]) == similar_lengths([0, 0]) == []


def test_padding_stays_small_and_every_document_is_in_one_group():
    lengths = torch.randint(1, 400, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = similar_lengths(lengths)
    assert sorted(itertools.chain(*groups)) == list(range(200))
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert 1 - sum(lengths[i] for i in group) / padded <= MAX_PADDING
    assert len(groups) < 40


def test_the_attention_product_is_float32_under_autocast_on_the_cpu(monkeypatch):
    seen = []
    original = attention.F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        out = original(q, k, v, **options)
        seen.extend(x.dtype for x in (q, k, v, out))
        return out

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    q, k, v = flat_qkv(8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Documents((0, 8), CPU).attend(0, q, k, v.bfloat16())
    assert seen == [torch.float32] * 4
    assert out.dtype == torch.bfloat16


def test_dropout_drops_attention_weights_and_keeps_their_mean():
    q, k, _ = flat_qkv(2000, torch.float32)
    ones = torch.ones(2000, KV_HEADS, HEAD_DIM)
    torch.manual_seed(0)
    dropped = Documents((0, 2000), CPU, dropout=0.4).attend(0, q, k, ones)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropped[0].unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    kept = Documents((0, 2000), CPU).attend(0, q, k, ones)
    torch.testing.assert_close(kept, torch.ones_like(kept))


def tiny_cache(sequences: int, max_len: int) -> KVCache:
    config = ModelConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=HEADS,
                         num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    return KVCache(config, sequences, max_len, torch.float64, CPU)


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # PyTorch then fills what it would leave uninitialised
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("lengths", [[5], [4, 4], [3, 7, 1]])
@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_decoding_from_the_cache_is_attention_over_the_whole_sequence(lengths):
    new = 3
    sequences = [[x.detach() for x in flat_qkv(length + new)] for length in lengths]
    cache = tiny_cache(len(lengths), max(lengths) + new)
    context = cache.prefill([0, *itertools.accumulate(lengths)])
    prompts = [torch.cat([qkv[i][:n] for qkv, n in zip(sequences, lengths, strict=True)]) for i in range(3)]
    for layer in (0, 1):
        context.attend(layer, *prompts)
    for step in range(new):
        positions = cache.advance()
        assert positions.tolist() == [n + step for n in lengths]
        token = [torch.stack([qkv[i][n + step] for qkv, n in zip(sequences, lengths, strict=True)]) for i in range(3)]
        for layer in (0, 1):
            out = cache.attend(layer, *token)
        for s, (qkv, n) in enumerate(zip(sequences, lengths, strict=True)):
            whole = plain_attention(*(x[:n + step + 1] for x in qkv), (0, n + step + 1))
            torch.testing.assert_close(out[s], whole[-1], rtol=1e-12, atol=1e-12)


def test_sequences_that_go_on_keep_their_past():
    lengths, kept = [2, 5, 3, 4], [3, 1]
    qkv = [x.detach() for x in flat_qkv(sum(lengths))]
    cache = tiny_cache(4, 8)
    starts = [0, *itertools.accumulate(lengths)]
    context = cache.prefill(starts)
    for layer in (0, 1):
        context.attend(layer, *qkv)
    cache.keep(kept)
    assert cache.advance().tolist() == [4, 5]
    token = [x.detach() for x in flat_qkv(2)]
    for layer in (0, 1):
        out = cache.attend(layer, *token)
        for s, source in enumerate(kept):
            past = slice(starts[source], starts[source + 1])
            whole = [torch.cat((x[past], t[s:s + 1])) for x, t in zip(qkv, token, strict=True)]
            torch.testing.assert_close(out[s], plain_attention(*whole, (0, len(whole[0])))[-1], rtol=1e-12, atol=1e-12)
