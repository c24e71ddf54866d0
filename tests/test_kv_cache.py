"""Attention to the KV cache, compared with a written-out softmax."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from plain_attention import CPU, HEAD_DIM, HEADS, KV_HEADS, flat_qkv, plain_attention
from torch import Tensor

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kv_cache import CachedPieces, KVCache, NewestTokens, Piece, padded_length

LAYERS = (0, 1)


def tiny_cache(places: int) -> KVCache:
    config = ModelConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=HEADS,
                         num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    return KVCache(config, places, torch.float64, CPU)


def tokens_of(qkv: list[Tensor], first: int, last: int) -> list[Tensor]:
    return [x[first:last].detach() for x in qkv]


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # PyTorch then fills what it would leave uninitialised
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("window", [None, 1, 4, 6])
@pytest.mark.parametrize("parts", [[[5, 1, 1]], [[4, 1], [4, 1]], [[3, 4, 1], [7, 1, 2], [1, 1, 5]]])
@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_reading_in_parts_equals_attention_over_the_whole_sequence(parts: list[list[int]], window: int | None):
    """Each sequence adds so many tokens in each pass; each has its stretch of the cache."""
    sequences = [flat_qkv(sum(part)) for part in parts]
    cache, starts = tiny_cache(40), [13 * s for s in range(len(parts))]
    done = [0] * len(parts)
    for news in zip(*parts, strict=True):
        context = CachedPieces(cache, [Piece(start, past, new, past + new)
                                        for start, past, new in zip(starts, done, news, strict=True)])
        assert context.positions_T.tolist() == [
            position for past, new in zip(done, news, strict=True) for position in range(past, past + new)]
        assert context.last_S.tolist() == [end - 1 for end in itertools.accumulate(news)]
        new_qkv = [torch.cat(x) for x in zip(*(tokens_of(qkv, past, past + new) for qkv, past, new
                                               in zip(sequences, done, news, strict=True)), strict=True)]
        for layer in LAYERS:
            out = context.attend(layer, *new_qkv, window)
        done = [past + new for past, new in zip(done, news, strict=True)]
        for qkv, end, new, out_UHK in zip(sequences, done, news, out.split(list(news)), strict=True):
            whole = plain_attention(*tokens_of(qkv, 0, end), (0, end), window)
            torch.testing.assert_close(out_UHK, whole[-new:], rtol=1e-12, atol=1e-12)


def test_layers_of_one_model_may_differ_in_their_window():
    qkv, cache = flat_qkv(9), tiny_cache(9)
    for past, new in ((0, 8), (8, 1)):
        context = CachedPieces(cache, [Piece(0, past, new, past + new)])
        for layer, window in enumerate((3, None)):
            out = context.attend(layer, *tokens_of(qkv, past, past + new), window)
            expected = plain_attention(*tokens_of(qkv, 0, past + new), (0, past + new), window)[-new:]
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("move", ["copied", "reordered"])
def test_a_sequence_goes_on_at_another_place(move: str):
    qkv, cache = flat_qkv(7), tiny_cache(24)
    context = CachedPieces(cache, [Piece(0, 0, 6, 6)])
    for layer in LAYERS:
        context.attend(layer, *tokens_of(qkv, 0, 6), None)
    if move == "copied":
        cache.copy(0, 16, 6)
    else:
        cache.reorder([4, 5, 3, 2, 0, 1], 4)
    context = CachedPieces(cache, [Piece(16, 6, 1, 7)])
    for layer in LAYERS:
        out = context.attend(layer, *tokens_of(qkv, 6, 7), None)
        expected = plain_attention(*tokens_of(qkv, 0, 7), (0, 7), None)[-1:]
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_its_memory_is_known():
    assert tiny_cache(24).bytes == 2 * 2 * KV_HEADS * 24 * HEAD_DIM * 8


def test_the_newest_tokens_read_their_sequences_in_any_company():
    """Some are equally far apart, some have the same padded length, some are alone; each gets the same bits."""
    lengths, starts = [5, 9, 40, 33, 64, 3], [0, 64, 128, 192, 300, 380]
    sequences = [flat_qkv(length) for length in lengths]
    cache = tiny_cache(420)
    for start, length, qkv in zip(starts, lengths, sequences, strict=True):
        context = CachedPieces(cache, [Piece(start, 0, length - 1, length - 1)])
        for layer in LAYERS:
            context.attend(layer, *tokens_of(qkv, 0, length - 1), None)
    for window in (None, 4, 36):
        together = read_newest(cache, starts, lengths, sequences, window)
        for s, (qkv, length) in enumerate(zip(sequences, lengths, strict=True)):
            assert torch.equal(read_newest(cache, starts[s:s + 1], lengths[s:s + 1], [qkv], window), together[s:s + 1])
            expected = plain_attention(*tokens_of(qkv, 0, length), (0, length), window)[-1]
            torch.testing.assert_close(together[s], expected, rtol=1e-12, atol=1e-12)


def read_newest(cache: KVCache, starts: list[int], lengths: list[int], sequences: list[list[Tensor]],
                window: int | None) -> Tensor:
    context = NewestTokens(cache, starts, lengths)
    assert (context.positions_T + 1).tolist() == context.length_T.tolist() == lengths
    new = [torch.cat(x) for x in zip(*(tokens_of(qkv, length - 1, length) for qkv, length
                                       in zip(sequences, lengths, strict=True)), strict=True)]
    outs = [context.attend(layer, *new, window) for layer in LAYERS]
    return outs[-1]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("starts", [[0, 16, 32, 48], [48, 32, 16, 0], [0, 16, 40, 64]])
def test_pieces_that_look_alike_get_the_same_bits_in_any_company(starts: list[int], window: int | None):
    sequences, cache = [flat_qkv(8) for _ in starts], tiny_cache(80)
    for past, new in ((0, 5), (5, 3)):
        qkvs, end = [tokens_of(qkv, past, past + new) for qkv in sequences], past + new
        together = CachedPieces(cache, [Piece(start, past, new, end) for start in starts]).attend(
            0, *map(torch.cat, zip(*qkvs, strict=True)), window)
        for s, (start, qkv) in enumerate(zip(starts, qkvs, strict=True)):
            alone = CachedPieces(cache, [Piece(start, past, new, end)]).attend(0, *qkv, window)
            assert torch.equal(alone, together[s * new:s * new + new])
            whole = plain_attention(*tokens_of(sequences[s], 0, end), (0, end), window)
            torch.testing.assert_close(alone, whole[-new:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (9, 3), (4, 1), (4, 2)])
def test_no_thread_rounds_otherwise(heads: int, kv_heads: int):
    config = ModelConfig(hidden_size=heads * 32, num_hidden_layers=1, num_attention_heads=heads,
                         num_key_value_heads=kv_heads, head_dim=32)
    cache, starts = KVCache(config, 512, torch.float32, CPU), [0, 128, 256, 384]
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for past, new in ((0, 1), (0, 2), (2, 64), (66, 5), (71, 1), (72, 1)):
            qkv = [torch.randn(4 * new, each, 32, generator=generator) for each in (heads, kv_heads, kv_heads)]

            def read(first: int, last: int, qkv: list[Tensor] = qkv, past: int = past, new: int = new) -> Tensor:
                part = starts[first:last]
                context = (NewestTokens(cache, part, [past + 1] * len(part)) if past > 70
                           else CachedPieces(cache, [Piece(start, past, new, past + new) for start in part]))
                return context.attend(0, *(x[first * new:last * new] for x in qkv), None)

            assert torch.equal(torch.cat([read(s, s + 1) for s in range(4)]), read(0, 4))
    finally:
        torch.set_num_threads(threads)


def test_what_an_earlier_sequence_left_has_no_influence():
    cache, (q, k, v) = tiny_cache(32), flat_qkv(1)
    left = CachedPieces(cache, [Piece(0, 0, 20, 20)])
    for layer in LAYERS:
        left.attend(layer, *(torch.full((20, *x.shape[1:]), torch.nan, dtype=x.dtype) for x in (q, k, v)), None)
    cache.clear(0, 32)
    out = read_newest(cache, [0], [1], [[q, k, v]], None)
    torch.testing.assert_close(out, plain_attention(*tokens_of([q, k, v], 0, 1), (0, 1), None))


@pytest.mark.parametrize(("tokens", "expected"), [
    (1, 32), (32, 32), (33, 64), (256, 256), (257, 320), (1024, 1024), (1025, 1280), (5000, 5120)])
def test_few_lengths_are_read(tokens: int, expected: int):
    assert padded_length(tokens) == expected
