"""The KV cache: keys and values of earlier tokens, which attention reads while a model generates.

Local letter: Y layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.model.attention import Documents
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.precision import at_least_float32


class KVCache:
    """Keys and values of all earlier tokens of S sequences, in memory that is allocated once.

    The forward pass over the prompts attends in the context that `prefill` returns. After that, each `advance` makes
    room for one token per sequence, and the forward pass over these tokens attends in the cache itself.

    Args:
        max_len: the maximum number of tokens in a sequence.
    """

    def __init__(self, config: ModelConfig, sequences: int, max_len: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_hidden_layers, sequences, config.num_key_value_heads, max_len, config.head_dim)
        # Masked positions enter the product with weight 0. Zeros keep a stray NaN out of it.
        self._keys_YSGLK = torch.zeros(shape, dtype=dtype, device=device)
        self._values_YSGLK = torch.zeros(shape, dtype=dtype, device=device)
        self._device = device
        self.lengths: list[int]
        self._next_S: Tensor
        self._set_lengths([0] * sequences)

    def prefill(self, cu_seqlens: Sequence[int]) -> "Prefill":
        """Returns the context of a forward pass over the prompts, one document per sequence."""
        documents = Documents(cu_seqlens, self._device)
        assert len(documents.lengths) == len(self.lengths) and not any(self.lengths)
        self._set_lengths(documents.lengths)
        return Prefill(documents, self)

    @property
    def length_T(self) -> Tensor:
        """The lengths of the sequences (S,), with the tokens that `advance` made room for."""
        return self._next_S

    def store(self, layer_index: int, sequences_T: Tensor, positions_T: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> None:
        """Writes the keys and values of T tokens to their positions in their sequences."""
        for kept_YSGLK, new_TGK in ((self._keys_YSGLK, k_TGK), (self._values_YSGLK, v_TGK)):
            kept_YSGLK[layer_index][sequences_T, :, positions_T] = new_TGK.to(kept_YSGLK.dtype)

    def advance(self) -> Tensor:
        """Makes room for one more token in each sequence and returns the tokens' positions (S,)."""
        self._new_S, self._next_S = self._next_S, self._next_S + 1
        self.lengths = [length + 1 for length in self.lengths]
        sequences, longest = len(self.lengths), max(self.lengths)
        self._rows_S = torch.arange(sequences, device=self._device) if min(self.lengths) < longest else None
        # Views for every layer to write and read, cut out once for all layers.
        self._write = _by_layer(*(x[:, :sequences, :, longest - 1] for x in (self._keys_YSGLK, self._values_YSGLK)))
        self._past: dict[int | None, _Past] = {}  # by window, made when the first layer with this window reads
        return self._new_S

    def attend(self, layer_index: int, q_SHK: Tensor, k_SGK: Tensor, v_SGK: Tensor, window: int | None) -> Tensor:
        """Appends the key and value of one token per sequence, then attends to the sequence's tokens in the window."""
        if window not in self._past:
            self._past[window] = self._read_by(window)
        past = self._past[window]
        keys_SGLK, values_SGLK = past.of_layer[layer_index]
        if self._rows_S is None:
            last_key_SGK, last_value_SGK = self._write[layer_index]
            last_key_SGK.copy_(k_SGK)
            last_value_SGK.copy_(v_SGK)
        else:
            self.store(layer_index, self._rows_S, self._new_S, k_SGK, v_SGK)
        # Query heads that share a key/value head take the place of query positions, so no key or value is repeated.
        q_SGQK = q_SHK.to(keys_SGLK.dtype).unflatten(1, (k_SGK.shape[1], -1))
        with torch.autocast(q_SHK.device.type, enabled=False):
            out_SGQK = F.scaled_dot_product_attention(q_SGQK, keys_SGLK, values_SGLK, attn_mask=past.mask_S11L)
        return out_SGQK.flatten(1, 2).to(v_SGK.dtype)

    def keep(self, slots: list[int]) -> None:
        """Keeps only these sequences: the one in `slots[i]` becomes number i."""
        for target, source in enumerate(slots):
            if source != target:
                assert source >= len(slots), "only sequences behind the kept ones move"
                length = self.lengths[source]
                self._keys_YSGLK[:, target, :, :length] = self._keys_YSGLK[:, source, :, :length]
                self._values_YSGLK[:, target, :, :length] = self._values_YSGLK[:, source, :, :length]
        self._set_lengths([self.lengths[source] for source in slots])

    def _read_by(self, window: int | None) -> "_Past":
        """Returns what the newest tokens read; the positions L begin where the shortest sequence's window does."""
        longest = max(self.lengths)
        first = 0 if window is None else max(min(self.lengths) - window, 0)
        keys_YSGLK, values_YSGLK = (
            x[:, :len(self.lengths), :, first:longest] for x in (self._keys_YSGLK, self._values_YSGLK))
        mask_S11L = None
        if self._rows_S is not None:
            back_S11L = self._new_S[:, None, None, None] - torch.arange(first, longest, device=self._device)
            mask_S11L = back_S11L >= 0
            if window is not None:
                mask_S11L &= back_S11L < window
        return _Past(_by_layer(keys_YSGLK, values_YSGLK), mask_S11L)

    def _set_lengths(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self._next_S = torch.tensor(self.lengths, device=self._device)


class _Past(NamedTuple):
    """The keys and values that one new token per sequence reads.

    of_layer: (S, G, L, K) each.
    mask_S11L: which of them a sequence reads; None: all.
    """

    of_layer: list[tuple[Tensor, Tensor]]
    mask_S11L: Tensor | None


def _by_layer(keys_YSGLK: Tensor, values_YSGLK: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(keys_YSGLK.unbind(), values_YSGLK.unbind(), strict=True))


def cache_dtype(weight: Tensor) -> torch.dtype:
    """Returns the dtype to cache in: the weights', but at least float32 on a CPU, where attention is faster in it."""
    return at_least_float32(weight.new_empty(0)).dtype if weight.device.type == "cpu" else weight.dtype


class Prefill:
    """Attends among the tokens of each prompt, and stores their keys and values in the cache."""

    def __init__(self, documents: Documents, cache: KVCache):
        self.positions_T = documents.positions_T
        self.length_T = documents.length_T
        self._documents, self._cache = documents, cache

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None) -> Tensor:
        self._cache.store(layer_index, self._documents.document_T, self.positions_T, k_TGK, v_TGK)
        return self._documents.attend(layer_index, q_THK, k_TGK, v_TGK, window)
