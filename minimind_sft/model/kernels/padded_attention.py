"""Attention within documents on every device: documents of similar length in one padded product.

Plain twin: attention.document_attention.

Local letters: P rows of all padded groups, or positions that are read; J documents of one group (B = J * G), or
positions of one block.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.device import send
from minimind_sft.model.kernels.short_attention import BLOCK, short_attention
from minimind_sft.model.precision import at_least_float32

MAX_PADDING = 0.2
"""Largest share of padding among the positions of one group of documents."""

MAX_BLOCK = 512
"""Queries beyond the first window are multiplied this many positions at a time, at most."""


class PaddedAttention:
    """Pads documents on the right to the longest of their group.

    Under a causal mask no position sees what follows it, so this padding needs no mask. Each key/value head of a
    document is one sequence of a product; the query heads that read it become Q queries per position, so no key or
    value is repeated.

    Args:
        v_TGK: values like those it will be called with.
        dropout: share of the attention weights to drop.
        short: as long as no product has more columns than this, `short_attention` computes it, beyond it
            `flash_attention`.
    """

    def __init__(self, cu_seqlens: Sequence[int], v_TGK: Tensor, dropout: float = 0.0, short: int = 0):
        self._dropout, self._short = dropout, short
        self._bands: dict[int, Tensor] = {}
        self._shapes: list[tuple[int, int]] = []  # (B, L) of each group
        lengths, starts_S = [end - start for start, end in pairwise(cu_seqlens)], torch.tensor(cu_seqlens[:-1])
        kv_heads, rows = v_TGK.shape[1], 0
        # Rows are those of a tensor (T, G, ...) taken as (T * G, ...): for each padded row the one it copies, and for
        # each row its padded one.
        pad, unpad_TG = [], torch.empty(cu_seqlens[-1] * kv_heads, dtype=torch.int64)
        for group in similar_lengths(lengths):
            longest, starts_J = lengths[group[-1]], starts_S[group]
            lengths_J, column_L = torch.tensor([lengths[i] for i in group]), torch.arange(longest)
            # Padding repeats a document's last token.
            token_JL = starts_J[:, None] + torch.minimum(column_L, lengths_J[:, None] - 1)
            row_JGL = token_JL[:, None] * kv_heads + torch.arange(kv_heads)[:, None]
            real_JGL = (column_L < lengths_J[:, None, None]).expand_as(row_JGL)
            unpad_TG[row_JGL[real_JGL]] = rows + real_JGL.flatten().nonzero().squeeze(1)
            self._shapes.append((len(group) * kv_heads, longest))
            pad.append(row_JGL.flatten())
            rows += row_JGL.numel()
        if not pad:  # a batch without tokens still runs, so that every weight gets its (zero) gradient
            self._shapes, pad = [(0, 1)], [unpad_TG]
        self._pad_P, self._unpad_TG = send(torch.cat(pad), v_TGK.device), send(unpad_TG, v_TGK.device)

    def __call__(self, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None = None) -> Tensor:
        q_TGQK = q_THK.unflatten(1, (k_TGK.shape[1], -1))
        q_groups, k_groups, v_groups = (
            rows.index_select(0, self._pad_P).split([sequences * length for sequences, length in self._shapes])
            for rows in (q_TGQK.flatten(0, 1), k_TGK.flatten(0, 1), v_TGK.flatten(0, 1))
        )
        out_groups = []
        for shape, *qkv in zip(self._shapes, q_groups, k_groups, v_groups, strict=True):
            q_BLQK, k_BLK, v_BLK = (rows.unflatten(0, shape) for rows in qkv)
            out_groups.append(self._attend(q_BLQK, k_BLK, v_BLK, window).flatten(0, 1))
        return torch.cat(out_groups).index_select(0, self._unpad_TG).view_as(q_THK)

    def _attend(self, q_BLQK: Tensor, k_BLK: Tensor, v_BLK: Tensor, window: int | None) -> Tensor:
        length = columns = q_BLQK.shape[1]
        if window is not None:
            columns = min(length, window + BLOCK)
        if columns <= self._short:
            return short_attention(q_BLQK, k_BLK, v_BLK, window)
        if window is None or window >= length:
            return flash_attention(q_BLQK, k_BLK, v_BLK, self._dropout)
        if window not in self._bands:
            self._bands[window] = band(window, v_BLK)
        return windowed_attention(q_BLQK, k_BLK, v_BLK, self._bands[window], self._dropout)


def similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Groups indices in ascending order of length, with at most MAX_PADDING padding in a group; skips empty ones."""
    groups: list[list[int]] = []
    real = 0
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i]):
        if groups and (real + lengths[i]) >= (1 - MAX_PADDING) * lengths[i] * (len(groups[-1]) + 1):
            groups[-1].append(i)
            real += lengths[i]
        else:
            groups.append([i])
            real = lengths[i]
    return groups


def flash_attention(q_BLQK: Tensor, k_BLK: Tensor, v_BLK: Tensor, dropout: float = 0.0,
                    mask_LP: Tensor | None = None) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)) v over each sequence's own past, for each of the Q queries of a position.

    Calls PyTorch's attention. On a CPU it computes in at least float32 under any autocast, which is faster there than
    bfloat16; on other devices in the dtype of `v`, which the result (B, L, Q, K) has everywhere.

    Args:
        mask_LP: added to the scores in place of the causal mask, if the L queries are not at the P positions they read.
    """
    q_BQLK, k_B1PK, v_B1PK = (
        x.to(flash_dtype(v_BLK)) for x in (q_BLQK.transpose(1, 2), k_BLK[:, None], v_BLK[:, None]))
    with torch.autocast(q_BLQK.device.type, enabled=False):
        out_BQLK = F.scaled_dot_product_attention(q_BQLK, k_B1PK, v_B1PK, attn_mask=mask_LP, dropout_p=dropout,
                                                  is_causal=mask_LP is None, enable_gqa=True)
    return out_BQLK.transpose(1, 2).to(v_BLK.dtype)


def flash_dtype(v: Tensor) -> torch.dtype:
    return at_least_float32(v[:0]).dtype if v.device.type == "cpu" else v.dtype


def windowed_attention(q_BLQK: Tensor, k_BLK: Tensor, v_BLK: Tensor, band_JP: Tensor, dropout: float = 0.0) -> Tensor:
    """Attends within a window shorter than the sequences, a block of queries at a time.

    The first `window` positions read their whole past. Every later block reads itself and the window - 1 positions
    before it, all under the same mask, so the cost grows with the length and not with its square.
    """
    block, window = len(band_JP), band_JP.shape[1] - len(band_JP) + 1
    length = q_BLQK.shape[1]
    out = [flash_attention(q_BLQK[:, :window], k_BLK[:, :window], v_BLK[:, :window], dropout)]
    for start in range(window, length, block):
        end = min(start + block, length)
        past = slice(start - window + 1, end)
        mask = band_JP[: end - start, : end - start + window - 1]
        out.append(flash_attention(q_BLQK[:, start:end], k_BLK[:, past], v_BLK[:, past], dropout, mask))
    return torch.cat(out, 1)


def band(window: int, v: Tensor) -> Tensor:
    """Returns the mask of a block of queries: 0 where they read, -inf elsewhere.

    For a window of 3 and blocks of 4, where the first column is two positions before the block:

        x x x . . .
        . x x x . .
        . . x x x .
        . . . x x x
    """
    block = min(window, MAX_BLOCK)
    read_JP = torch.ones(block, block + window - 1, dtype=torch.bool, device=v.device).triu().tril(window - 1)
    return torch.zeros(read_JP.shape, dtype=flash_dtype(v), device=v.device).masked_fill_(~read_JP, -torch.inf)
