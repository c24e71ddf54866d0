"""Attention to the KV cache, compared with a written-out softmax."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from plain_attention import CPU, HEAD_DIM, HEADS, KV_HEADS, flat_qkv, plain_attention

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kv_cache import KVCache


def tiny_cache(sequences: int, max_len: int) -> KVCache:
    config = ModelConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=HEADS,
                         num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    return KVCache(config, sequences, max_len, torch.float64, CPU)


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # PyTorch then fills what it would leave uninitialised
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("window", [None, 1, 4, 6])
@pytest.mark.parametrize("lengths", [[5], [4, 4], [3, 7, 1], [9, 8]])
@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_decoding_from_the_cache_equals_attention_over_the_whole_sequence(lengths: list[int], window: int | None):
    new = 3
    sequences = [[x.detach() for x in flat_qkv(length + new)] for length in lengths]
    cache = tiny_cache(len(lengths), max(lengths) + new)
    context = cache.prefill([0, *itertools.accumulate(lengths)])
    prompts = [torch.cat([qkv[i][:n] for qkv, n in zip(sequences, lengths, strict=True)]) for i in range(3)]
    boundaries = (0, *itertools.accumulate(lengths))
    for layer in (0, 1):
        out = context.attend(layer, *prompts, window)
    torch.testing.assert_close(out, plain_attention(*prompts, boundaries, window), rtol=1e-12, atol=1e-12)
    for step in range(new):
        positions = cache.advance()
        assert positions.tolist() == [n + step for n in lengths]
        token = [torch.stack([qkv[i][n + step] for qkv, n in zip(sequences, lengths, strict=True)]) for i in range(3)]
        for layer in (0, 1):
            out = cache.attend(layer, *token, window)
        for s, (qkv, n) in enumerate(zip(sequences, lengths, strict=True)):
            whole = plain_attention(*(x[:n + step + 1] for x in qkv), (0, n + step + 1), window)
            torch.testing.assert_close(out[s], whole[-1], rtol=1e-12, atol=1e-12)


def test_layers_of_one_model_may_differ_in_their_window():
    qkv = [x.detach() for x in flat_qkv(9)]
    cache = tiny_cache(1, 9)
    context = cache.prefill([0, 8])
    for layer, window in enumerate((3, None)):
        context.attend(layer, *(x[:8] for x in qkv), window)
    cache.advance()
    for layer, window in enumerate((3, None)):
        out = cache.attend(layer, *(x[8:] for x in qkv), window)
        torch.testing.assert_close(out, plain_attention(*qkv, (0, 9), window)[8:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
def test_remaining_sequences_keep_their_past(window: int | None):
    lengths, kept = [2, 5, 3, 4], [3, 1]
    qkv = [x.detach() for x in flat_qkv(sum(lengths))]
    cache = tiny_cache(4, 8)
    starts = [0, *itertools.accumulate(lengths)]
    context = cache.prefill(starts)
    for layer in (0, 1):
        context.attend(layer, *qkv, window)
    cache.keep(kept)
    assert cache.advance().tolist() == [4, 5]
    token = [x.detach() for x in flat_qkv(2)]
    for layer in (0, 1):
        out = cache.attend(layer, *token, window)
        for s, source in enumerate(kept):
            past = slice(starts[source], starts[source + 1])
            whole = [torch.cat((x[past], t[s:s + 1])) for x, t in zip(qkv, token, strict=True)]
            expected = plain_attention(*whole, (0, len(whole[0])), window)[-1]
            torch.testing.assert_close(out[s], expected, rtol=1e-12, atol=1e-12)
