"""The KV cache: keys and values of earlier tokens, which attention reads while a model generates.

Local letters: P places of the cache, U new tokens of one sequence, J rows of queries that share a key/value head,
M sequences that are attended to together.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.precision import at_least_float32

STEPS = (256, 32), (1024, 64), (math.inf, 256)
"""Sequences of up to so many tokens are read up to a multiple of so many."""
MAX_VIEWS = 256
"""Views of the cache that are kept, as the next step is likely to need the same."""


class KVCache:
    """Memory for the keys and values of `places` tokens in every layer, allocated once.

    The tokens of a sequence have neighbouring places. inference/cache.py decides who has which.
    """

    def __init__(self, config: ModelConfig, places: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_key_value_heads, places, config.head_dim)
        self._keys, self._values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)] for _ in range(2))
        self._views: dict[Blocks, list[tuple[Tensor, Tensor]]] = {}

    @property
    def device(self) -> torch.device:
        return self._keys[0].device

    @property
    def bytes(self) -> int:
        """The memory of all keys and values."""
        return sum(one.numel() * one.element_size() for one in (*self._keys, *self._values))

    def of_layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values, (G, P, K) each."""
        return self._keys[layer_index], self._values[layer_index]

    def clear(self, first: int, count: int) -> None:
        """Writes zeros: places that a mask leaves out enter the product with weight 0, which a NaN would survive."""
        for one_GPK in (*self._keys, *self._values):
            one_GPK[:, first:first + count] = 0

    def of_blocks(self, blocks: "Blocks") -> list[tuple[Tensor, Tensor]]:
        """Returns each layer's keys and values of these blocks, (M, G, L, K) each."""
        if blocks not in self._views:
            if len(self._views) == MAX_VIEWS:
                self._views.clear()
            kv_heads, places, head_dim = self._keys[0].shape
            shape = (blocks.count, kv_heads, blocks.size, head_dim)
            strides = (blocks.stride * head_dim, places * head_dim, head_dim, 1)
            views = [[one_GPK.as_strided(shape, strides, blocks.first * head_dim) for one_GPK in parts]
                     for parts in (self._keys, self._values)]
            self._views[blocks] = list(zip(*views, strict=True))
        return self._views[blocks]

    def copy(self, source: int, target: int, count: int) -> None:
        """Copies the keys and values of `count` places to others, which do not overlap with them."""
        for one_GPK in (*self._keys, *self._values):
            one_GPK[:, target:target + count] = one_GPK[:, source:source + count]

    def reorder(self, source_P: Sequence[int], size: int) -> None:
        """Moves blocks of `size` places: block i becomes the one that was at `source_P[i]`."""
        index_P = torch.tensor(source_P, device=self.device)
        for one_GPK in (*self._keys, *self._values):
            blocks = one_GPK.unflatten(1, (len(source_P), size))
            blocks.copy_(blocks.index_select(1, index_P))


@dataclass(frozen=True)
class Blocks:
    """`count` stretches of `size` places; the first ones of neighbours are `stride` apart."""

    first: int
    stride: int
    count: int
    size: int


class Piece(NamedTuple):
    """New tokens of one sequence.

    start: the place of the sequence's first token in the cache.
    past: how many tokens of the sequence are in the cache.
    new: how many a forward pass adds.
    length: how many the sequence has by then, as far as they are known. Dynamic RoPE scaling goes by it.
    """

    start: int
    past: int
    new: int
    length: int


class _Context:
    """Stores keys and values of new tokens, then attends to their sequences in the cache."""

    def __init__(self, cache: KVCache, positions: Sequence[int], places: Sequence[int]):
        self._cache = cache
        self.positions_T = torch.tensor(positions, dtype=torch.int64, device=cache.device)
        self._places_T = torch.tensor(places, dtype=torch.int64, device=cache.device)

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None) -> Tensor:
        """Returns what each token reads of its sequence (T, H, K)."""
        keys_GPK, values_GPK = self._cache.of_layer(layer_index)
        keys_GPK.index_copy_(1, self._places_T, k_TGK.transpose(0, 1).to(keys_GPK.dtype))
        values_GPK.index_copy_(1, self._places_T, v_TGK.transpose(0, 1).to(keys_GPK.dtype))
        # Query heads that share a key/value head take the place of query positions, so no key or value is repeated.
        q_TGQK = q_THK.to(keys_GPK.dtype).unflatten(1, (k_TGK.shape[1], -1))
        device = q_THK.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            out = self._read(layer_index, q_TGQK, window)
        return (out[0] if len(out) == 1 else torch.cat(out)).flatten(1, 2).to(v_TGK.dtype)

    def _read(self, layer_index: int, q_TGQK: Tensor, window: int | None) -> list[Tensor]:
        """Returns what the tokens read, in parts of (T, G, Q, K)."""
        raise NotImplementedError


class CachedPieces(_Context):
    """Attends from new tokens of several sequences to themselves and their past, to each sequence on its own."""

    def __init__(self, cache: KVCache, pieces: Sequence[Piece]):
        super().__init__(cache, [piece.past + new for piece in pieces for new in range(piece.new)],
                         [piece.start + piece.past + new for piece in pieces for new in range(piece.new)])
        self._pieces, self._counts = pieces, [piece.new for piece in pieces]
        self._masks: dict[int | None, list[Tensor]] = {}

    @property
    def last_S(self) -> Tensor:
        """The place of each sequence's last new token among all of them."""
        return torch.tensor(self._counts, dtype=torch.int64, device=self._cache.device).cumsum(0) - 1

    @property
    def length_T(self) -> Tensor:
        """The length of each token's sequence."""
        lengths = [piece.length for piece in self._pieces for _ in range(piece.new)]
        return torch.tensor(lengths, dtype=torch.int64, device=self._cache.device)

    def _read(self, layer_index: int, q_TGQK: Tensor, window: int | None) -> list[Tensor]:
        keys_GPK, values_GPK = self._cache.of_layer(layer_index)
        if window not in self._masks:
            queries = q_TGQK.shape[2]
            self._masks[window] = [_mask(piece, window, keys_GPK).repeat(queries, 1) for piece in self._pieces]
        out = [q_TGQK[:0]]
        for piece, q_UGQK, mask_JL in zip(self._pieces, q_TGQK.split(self._counts), self._masks[window], strict=True):
            end = piece.start + piece.past + piece.new
            first = piece.start + _first_read(piece, window)
            out.append(_attend(q_UGQK, keys_GPK[:, first:end], values_GPK[:, first:end], mask_JL))
        return out


def _attend(q_UGQK: Tensor, keys_GLK: Tensor, values_GLK: Tensor, mask_JL: Tensor) -> Tensor:
    """Returns what the new tokens of one sequence read (U, G, Q, K)."""
    new, _, queries, _ = q_UGQK.shape
    q_1GJK = q_UGQK.permute(1, 2, 0, 3).flatten(1, 2)[None]
    out_1GJK = F.scaled_dot_product_attention(q_1GJK, keys_GLK[None], values_GLK[None], attn_mask=mask_JL)
    return out_1GJK[0].unflatten(1, (queries, new)).permute(2, 0, 1, 3)


def _first_read(piece: Piece, window: int | None) -> int:
    """Returns the first position that the first new token reads."""
    return 0 if window is None else max(piece.past + 1 - window, 0)


def _mask(piece: Piece, window: int | None, like: Tensor) -> Tensor:
    """Returns what is added to the scores (U, L): -inf where a new token does not read a position."""
    end = piece.past + piece.new
    positions_U1 = torch.arange(piece.past, end, device=like.device)[:, None]
    back_UL = positions_U1 - torch.arange(_first_read(piece, window), end, device=like.device)
    unread_UL = back_UL < 0 if window is None else (back_UL < 0) | (back_UL >= window)
    return like.new_zeros(back_UL.shape).masked_fill_(unread_UL, -torch.inf)


class NewestTokens(_Context):
    """Attends from the newest token of each of several sequences to the whole sequence.

    A sequence is read up to a length that depends on its own alone, with a mask. Sequences of the same one that are
    equally far apart in the cache are read together; that changes no bits.

    Args:
        starts: the place of each sequence's first token, rising.
        lengths: tokens of each sequence, the newest included.
    """

    def __init__(self, cache: KVCache, starts: Sequence[int], lengths: Sequence[int]):
        super().__init__(cache, [length - 1 for length in lengths],
                         [start + length - 1 for start, length in zip(starts, lengths, strict=True)])
        self._starts, self._lengths = starts, lengths
        self._groups = list(_groups(starts, [padded_length(length) for length in lengths]))
        self._views = [cache.of_blocks(group) for group in self._groups]
        self._counts = [group.count for group in self._groups]
        self._masks = [self._mask(group, part) for group, part in zip(
            self._groups, (self.positions_T + 1).split(self._counts), strict=True)]

    @property
    def length_T(self) -> Tensor:
        """The length of each sequence."""
        return self.positions_T + 1

    def _mask(self, group: Blocks, length_M: Tensor) -> Tensor:
        """Returns what is added to the scores (M, 1, 1, L): -inf behind the newest token."""
        keys_GPK, _ = self._cache.of_layer(0)
        behind_ML = torch.arange(group.size, device=length_M.device) >= length_M[:, None]
        return keys_GPK.new_zeros(behind_ML.shape).masked_fill_(behind_ML, -torch.inf)[:, None, None]

    def _read(self, layer_index: int, q_TGQK: Tensor, window: int | None) -> list[Tensor]:
        if window is not None and max(self._lengths) > window:
            masks = [mask_111L for mask_M11L in self._masks for mask_111L in mask_M11L.split(1)]
            return [self._read_one(layer_index, q_TGQK[s:s + 1], s, window, mask) for s, mask in enumerate(masks)]
        return [F.scaled_dot_product_attention(q_MGQK, *views[layer_index], attn_mask=mask_M11L)
                for q_MGQK, views, mask_M11L in zip(q_TGQK.split(self._counts), self._views, self._masks, strict=True)]

    def _read_one(self, layer_index: int, q_1GQK: Tensor, s: int, window: int, mask_111L: Tensor) -> Tensor:
        """Returns what the newest token of one sequence reads: all, or exactly the window of a longer one."""
        start, length = self._starts[s], self._lengths[s]
        first, end, mask = start, start + mask_111L.shape[-1], cast(Tensor | None, mask_111L)
        if length > window:
            first, end, mask = start + length - window, start + length, None
        keys_1GLK, values_1GLK = (one_GPK[None, :, first:end] for one_GPK in self._cache.of_layer(layer_index))
        return F.scaled_dot_product_attention(q_1GQK, keys_1GLK, values_1GLK, attn_mask=mask)


def _groups(starts: Sequence[int], sizes: Sequence[int]) -> Iterator[Blocks]:
    """Yields the sequences in as few groups as neighbours form."""
    begin = 0
    for end in range(1, len(starts) + 1):
        alike = end < len(starts) and sizes[end] == sizes[begin] and (
            end - begin < 2 or starts[end] - starts[end - 1] == starts[begin + 1] - starts[begin])
        if not alike:
            stride = starts[begin + 1] - starts[begin] if end - begin > 1 else sizes[begin]
            yield Blocks(starts[begin], stride, end - begin, sizes[begin])
            begin = end


def padded_length(tokens: int) -> int:
    """Returns up to where a sequence is read, so that few different lengths let more sequences be read together."""
    step = next(step for limit, step in STEPS if tokens <= limit)
    return -(-tokens // step) * step


def cache_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype to cache in: the weights', but at least float32 on a CPU, where attention is faster in it."""
    return at_least_float32(weight.new_empty(0)).dtype if weight.device.type == "cpu" else weight.dtype
