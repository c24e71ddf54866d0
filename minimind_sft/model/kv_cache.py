"""The KV cache: keys and values of earlier tokens, which attention reads while a model generates.

Local letters: P places of the cache, U new tokens of one sequence, J rows of queries that share a key/value head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.precision import at_least_float32


class KVCache:
    """Memory for the keys and values of `places` tokens in every layer, allocated once.

    The tokens of a sequence have neighbouring places. Who has which is decided elsewhere (inference/pages.py).
    """

    def __init__(self, config: ModelConfig, places: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_key_value_heads, places, config.head_dim)
        self._keys, self._values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)] for _ in range(2))

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


class CachedContext:
    """Attends from new tokens of several sequences to their past in the cache, and stores their keys and values.

    Each sequence is attended to on its own, in a shape that depends on its own tokens alone: beside others, a token
    gets the same bits as alone.
    """

    def __init__(self, cache: KVCache, pieces: Sequence[Piece]):
        self._cache, self._pieces = cache, pieces
        device = cache.device
        self._counts = [piece.new for piece in pieces]
        self._single = all(count == 1 for count in self._counts)
        if self._single:
            self.positions_T = torch.tensor([piece.past for piece in pieces], dtype=torch.int64, device=device)
            self._places_T = torch.tensor(
                [piece.start + piece.past for piece in pieces], dtype=torch.int64, device=device)
        else:
            runs = [torch.arange(piece.past, piece.past + piece.new) for piece in pieces]
            self.positions_T = torch.cat(runs).to(device)
            self._places_T = torch.cat([run + piece.start for run, piece in zip(runs, pieces, strict=True)]).to(device)
        self._masks: dict[int | None, list[Tensor | None]] = {}

    @property
    def last_S(self) -> Tensor:
        """The place of each sequence's last new token among all of them."""
        return torch.tensor(self._counts, dtype=torch.int64, device=self._cache.device).cumsum(0) - 1

    @property
    def length_T(self) -> Tensor:
        lengths_S = torch.tensor([piece.length for piece in self._pieces], device=self._cache.device)
        return lengths_S.repeat_interleave(torch.tensor(self._counts, device=self._cache.device))

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None) -> Tensor:
        """Stores keys and values, then returns what each token reads of its sequence (T, H, K)."""
        keys_GPK, values_GPK = self._cache.of_layer(layer_index)
        keys_GPK.index_copy_(1, self._places_T, k_TGK.transpose(0, 1).to(keys_GPK.dtype))
        values_GPK.index_copy_(1, self._places_T, v_TGK.transpose(0, 1).to(keys_GPK.dtype))
        if window not in self._masks:
            self._masks[window] = [_mask(piece, window, keys_GPK.device) for piece in self._pieces]
        # Query heads that share a key/value head take the place of query positions, so no key or value is repeated.
        q_TGQK = q_THK.to(keys_GPK.dtype).unflatten(1, (k_TGK.shape[1], -1))
        out = []
        with torch.autocast(q_THK.device.type, enabled=False):
            for piece, q_UGQK, mask_UL in zip(self._pieces, q_TGQK.split(self._counts), self._masks[window],
                                              strict=True):
                end = piece.start + piece.past + piece.new
                first = piece.start + _first_read(piece, window)
                out.append(_attend(q_UGQK, keys_GPK[:, first:end], values_GPK[:, first:end], mask_UL))
        return torch.cat(out or [q_TGQK]).flatten(1, 2).to(v_TGK.dtype)


def _attend(q_UGQK: Tensor, keys_GLK: Tensor, values_GLK: Tensor, mask_UL: Tensor | None) -> Tensor:
    """Returns what the new tokens of one sequence read (U, G, Q, K)."""
    new, _, queries, _ = q_UGQK.shape
    if new == 1:
        return F.scaled_dot_product_attention(q_UGQK, keys_GLK[None], values_GLK[None])
    q_1GJK = q_UGQK.permute(1, 2, 0, 3).flatten(1, 2)[None]
    mask_JL = None if mask_UL is None else mask_UL.repeat(queries, 1)
    out_1GJK = F.scaled_dot_product_attention(q_1GJK, keys_GLK[None], values_GLK[None], attn_mask=mask_JL)
    return out_1GJK[0].unflatten(1, (queries, new)).permute(2, 0, 1, 3)


def _first_read(piece: Piece, window: int | None) -> int:
    """Returns the first position that the first new token reads."""
    return 0 if window is None else max(piece.past + 1 - window, 0)


def _mask(piece: Piece, window: int | None, device: torch.device) -> Tensor | None:
    """Returns which positions each new token reads (U, L); None: all."""
    if piece.new == 1:
        return None
    end = piece.past + piece.new
    positions_U1 = torch.arange(piece.past, end, device=device)[:, None]
    back_UL = positions_U1 - torch.arange(_first_read(piece, window), end, device=device)
    return (back_UL >= 0) if window is None else (back_UL >= 0) & (back_UL < window)


def cache_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype to cache in: the weights', but at least float32 on a CPU, where attention is faster in it."""
    return at_least_float32(weight.new_empty(0)).dtype if weight.device.type == "cpu" else weight.dtype
