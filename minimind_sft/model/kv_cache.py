"""The KV cache: keys and values of earlier tokens, which attention reads while a model generates.

Local letters: Y layers, P places of the cache, U new tokens of one sequence, J rows of queries that share a key/value
head, M sequences that are attended to together.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.precision import at_least_float32

T = TypeVar("T")

STEPS = (256, 32), (1024, 64), (math.inf, 256)
"""Sequences of up to so many tokens are read up to a multiple of so many."""
ALIGNED = 4
"""Numbers that vector instructions load from an aligned address at once."""
MAX_VIEWS = 256
"""Views of the cache that are kept, as the next step is likely to need the same."""


class KVCache:
    """Memory for the keys and values of `places` tokens in every layer, allocated once.

    The tokens of a sequence have neighbouring places. inference/cache.py decides who has which.
    """

    def __init__(self, config: ModelConfig, places: int, dtype: torch.dtype, device: torch.device):
        shape = (2, config.num_hidden_layers, config.num_key_value_heads, places, config.head_dim)
        self._all_2YGPK = torch.zeros(shape, dtype=dtype, device=device)
        self._layers: list[tuple[Tensor, Tensor]] = [(one[0], one[1]) for one in self._all_2YGPK.unbind(1)]
        self._views: dict[Blocks, list[tuple[Tensor, Tensor]]] = {}

    @property
    def device(self) -> torch.device:
        return self._all_2YGPK.device

    @property
    def bytes(self) -> int:
        """The memory of all keys and values."""
        return self._all_2YGPK.nbytes

    def of_layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values, (G, P, K) each."""
        return self._layers[layer_index]

    def clear(self, first: int, count: int) -> None:
        """Writes zeros: places that a mask leaves out enter the product with weight 0, which a NaN would survive."""
        self._all_2YGPK[:, :, :, first:first + count] = 0

    def of_blocks(self, blocks: "Blocks") -> list[tuple[Tensor, Tensor]]:
        """Returns each layer's keys and values of these blocks, (M, G, L, K) each."""
        if blocks not in self._views:
            if len(self._views) == MAX_VIEWS:
                self._views.clear()
            *_, kv_heads, places, head_dim = self._all_2YGPK.shape
            shape = (blocks.count, kv_heads, blocks.size, head_dim)
            strides = (blocks.stride * head_dim, places * head_dim, head_dim, 1)
            self._views[blocks] = [
                (keys_GPK.as_strided(shape, strides, keys_GPK.storage_offset() + blocks.first * head_dim),
                 values_GPK.as_strided(shape, strides, values_GPK.storage_offset() + blocks.first * head_dim))
                for keys_GPK, values_GPK in self._layers]
        return self._views[blocks]

    def copy(self, source: int, target: int, count: int) -> None:
        """Copies the keys and values of `count` places to others, which do not overlap with them."""
        self._all_2YGPK[:, :, :, target:target + count] = self._all_2YGPK[:, :, :, source:source + count]

    def reorder(self, source_P: Sequence[int], size: int) -> None:
        """Moves blocks of `size` places: block i becomes the one that was at `source_P[i]`."""
        index_P = torch.tensor(source_P, device=self.device)
        for one_GPK in self._all_2YGPK.flatten(0, 1):  # one by one, as the copy needs as much memory again
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


class _Context(ABC):
    """Stores keys and values of new tokens, then attends to their sequences in the cache."""

    def __init__(self, cache: KVCache, positions: Sequence[int], places: Sequence[int]):
        self._cache = cache
        self.positions_T = torch.tensor(positions, dtype=torch.int64, device=cache.device)
        self._places_T = torch.tensor(places, dtype=torch.int64, device=cache.device)

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None) -> Tensor:
        """Returns what each token reads of its sequence (T, H, K)."""
        keys_GPK, values_GPK = self._cache.of_layer(layer_index)
        dtype, result_dtype = keys_GPK.dtype, v_TGK.dtype
        if not q_THK.dtype == k_TGK.dtype == result_dtype == dtype:  # calls that change nothing take time, too
            q_THK, k_TGK, v_TGK = q_THK.to(dtype), k_TGK.to(dtype), v_TGK.to(dtype)
        keys_GPK.index_copy_(1, self._places_T, k_TGK.transpose(0, 1))
        values_GPK.index_copy_(1, self._places_T, v_TGK.transpose(0, 1))
        # Query heads that share a key/value head take the place of query positions, so no key or value is repeated.
        q_TGQK = q_THK.unflatten(1, (k_TGK.shape[1], -1))
        device = q_THK.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            out = self._read(layer_index, q_TGQK, window)
        out_THK = (out[0] if len(out) == 1 else torch.cat(out)).flatten(1, 2)
        return out_THK if result_dtype == dtype else out_THK.to(result_dtype)

    @abstractmethod
    def _read(self, layer_index: int, q_TGQK: Tensor, window: int | None) -> list[Tensor]:
        """Returns what the tokens read, in parts of (T, G, Q, K)."""


class CachedPieces(_Context):
    """Attends from new tokens of several sequences to themselves and their past, to each sequence on its own."""

    def __init__(self, cache: KVCache, pieces: Sequence[Piece]):
        super().__init__(cache, [piece.past + new for piece in pieces for new in range(piece.new)],
                         [piece.start + piece.past + new for piece in pieces for new in range(piece.new)])
        self._pieces, self._counts = pieces, [piece.new for piece in pieces]
        self._groups: dict[int | None, list[_Pieces]] = {}

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
        if window not in self._groups:
            self._groups[window] = list(self._grouped(window, q_TGQK.shape[2]))
        groups = self._groups[window]
        parts = q_TGQK.split_with_sizes([group.number * group.new for group in groups])
        return [_attend(q_NGQK.unflatten(0, (group.number, group.new)), *group.views[layer_index], group.mask_JL)
                for q_NGQK, group in zip(parts, groups, strict=True)]

    def _grouped(self, window: int | None, queries: int) -> Iterator["_Pieces"]:
        """Yields pieces that look alike and are equally far apart in the cache together; that changes no bits."""
        pieces, first = self._pieces, 0
        alike = [(piece.past, piece.new) for piece in pieces]
        starts = [piece.start + _first_read(piece, window) for piece in pieces]
        for start, stride, count, (past, new) in _neighbours(starts, alike):
            piece = pieces[first]
            first += count
            views = self._cache.of_blocks(Blocks(start, stride, count, past + new - _first_read(piece, window)))
            keys_MGLK, _ = views[0]
            yield _Pieces(count, new, views, _mask(piece, window, keys_MGLK).repeat(queries, 1))


class _Pieces(NamedTuple):
    """Pieces that are attended to together.

    number: how many there are.
    new: new tokens of each.
    views: the keys and values that they read, by layer.
    mask_JL: what is added to the scores of each.
    """

    number: int
    new: int
    views: list[tuple[Tensor, Tensor]]
    mask_JL: Tensor


def _attend(q_MUGQK: Tensor, keys_MGLK: Tensor, values_MGLK: Tensor, mask_JL: Tensor) -> Tensor:
    """Returns what the new tokens of some sequences read (M * U, G, Q, K)."""
    _, new, _, queries, _ = q_MUGQK.shape
    q_MGJK = q_MUGQK.permute(0, 2, 3, 1, 4).flatten(2, 3)
    out_MGJK = _attention(q_MGJK, keys_MGLK, values_MGLK, mask_JL)
    return out_MGJK.unflatten(2, (queries, new)).permute(0, 3, 1, 2, 4).flatten(0, 1)


def _attention(q_MGJK: Tensor, keys_MGLK: Tensor, values_MGLK: Tensor, mask: Tensor | None) -> Tensor:
    """Returns what each row of queries reads (M, G, J, K), the same bits whichever thread computes it.

    PyTorch's kernel for CPUs gives each thread the next J * (L + K + 2) numbers of a buffer, for J up to 32, and rounds
    otherwise where they do not begin at a multiple of `ALIGNED`. So rows of zeros fill up, and nobody reads theirs.
    Threads would share the products of a single sequence and head, so there are never less than two.
    """
    if q_MGJK.shape[:2] == (1, 1) and torch.get_num_threads() > 1:
        return _attention(q_MGJK.expand(2, -1, -1, -1), keys_MGLK.expand(2, -1, -1, -1),
                          values_MGLK.expand(2, -1, -1, -1), mask)[:1]
    rows, each = q_MGJK.shape[2], keys_MGLK.shape[2] + keys_MGLK.shape[3] + 2
    if rows * each % ALIGNED == 0:
        return F.scaled_dot_product_attention(q_MGJK, keys_MGLK, values_MGLK, attn_mask=mask)
    missing = next(missing for missing in range(1, ALIGNED) if (rows + missing) * each % ALIGNED == 0)
    q_MGJK = F.pad(q_MGJK, (0, 0, 0, missing))
    if mask is not None and mask.shape[-2] > 1:
        mask = F.pad(mask, (0, 0, 0, missing))
    return F.scaled_dot_product_attention(q_MGJK, keys_MGLK, values_MGLK, attn_mask=mask)[:, :, :rows]


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
        self._groups = [Blocks(*one) for one in _neighbours(starts, [padded_length(length) for length in lengths])]
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
        parts = q_TGQK.split_with_sizes(self._counts)
        return [_attention(q_MGQK, *views[layer_index], mask_M11L)
                for q_MGQK, views, mask_M11L in zip(parts, self._views, self._masks, strict=True)]

    def _read_one(self, layer_index: int, q_1GQK: Tensor, s: int, window: int, mask_111L: Tensor) -> Tensor:
        """Returns what the newest token of one sequence reads: all, or exactly the window of a longer one."""
        start, length = self._starts[s], self._lengths[s]
        first, end, mask = start, start + mask_111L.shape[-1], cast(Tensor | None, mask_111L)
        if length > window:
            first, end, mask = start + length - window, start + length, None
        keys_1GLK, values_1GLK = (one_GPK[None, :, first:end] for one_GPK in self._cache.of_layer(layer_index))
        return _attention(q_1GQK, keys_1GLK, values_1GLK, mask)


def _neighbours(starts: Sequence[int], sizes: Sequence[T]) -> Iterator[tuple[int, int, int, T]]:
    """Yields first place, stride, count and size of as few groups as neighbours of the same size form."""
    begin = 0
    for end in range(1, len(starts) + 1):
        alike = end < len(starts) and sizes[end] == sizes[begin] and starts[end] > starts[begin] and (
            end - begin < 2 or starts[end] - starts[end - 1] == starts[begin + 1] - starts[begin])
        if not alike:
            stride = starts[begin + 1] - starts[begin] if end - begin > 1 else 1
            yield starts[begin], stride, end - begin, sizes[begin]
            begin = end


def padded_length(tokens: int) -> int:
    """Returns up to where a sequence is read, so that few different lengths let more sequences be read together."""
    step = next(step for limit, step in STEPS if tokens <= limit)
    return -(-tokens // step) * step


def cache_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype to cache in: the weights', but at least float32 on a CPU, where attention is faster in it."""
    return at_least_float32(weight.new_empty(0)).dtype if weight.device.type == "cpu" else weight.dtype
