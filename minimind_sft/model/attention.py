"""Attention among the tokens of each document.

`Documents` and `KVCache` (kv_cache.py) are the two contexts a decoder layer can run in. Both offer

    attend(layer_index, q_THD, k_TGD, v_TGD) -> out_THD

and keep from the layer where one sequence ends and the next begins.

Shapes: T tokens of all documents in one row, H query heads, G key/value heads, Q = H / G query heads that share one, D
head dim, S documents, R documents of one group, L positions of each, B = R * G, P rows of all padded groups.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.device import send
from minimind_sft.model.short_attention import short_attention

MAX_PADDING = 0.2
"""Largest share of padding among the positions of one group of documents."""

SHORT = 384
"""Longest (padded) documents whose attention weights a CPU keeps for the backward pass, see short_attention.py."""


class Documents:
    """The documents of a flat batch; attention stays inside each. Made anew for each forward pass.

    Args:
        cu_seqlens: document boundaries, [0, ...].
        device: where the tokens are.
        dropout: share of the attention weights to drop.
        filled_to: T, where tokens follow the last document; they are one more, which `lengths` does not count.
    """

    def __init__(self, cu_seqlens: Sequence[int], device: torch.device, dropout: float = 0.0,
                 filled_to: int | None = None):
        self.lengths = [end - start for start, end in pairwise(cu_seqlens)]
        self.dropout = dropout
        if filled_to is not None and filled_to != cu_seqlens[-1]:
            cu_seqlens = (*cu_seqlens, filled_to)
        all_lengths = [end - start for start, end in pairwise(cu_seqlens)]
        assert cu_seqlens[0] == 0 and min(all_lengths, default=0) >= 0, "cu_seqlens must run from 0 up to T at most"
        lengths_S = torch.tensor(all_lengths, dtype=torch.int64)
        starts_T = torch.tensor(cu_seqlens[:-1], dtype=torch.int64).repeat_interleave(lengths_S)
        self.document_T = send(torch.arange(len(all_lengths)).repeat_interleave(lengths_S), device)
        self.positions_T = send(torch.arange(cu_seqlens[-1]) - starts_T, device)
        self._cu_seqlens = cu_seqlens
        self._backend: Backend | None = None

    def attend(self, layer_index: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        if self._backend is None:
            choice = choose_backend(v_TGD, self.dropout)
            self._backend = choice(self._cu_seqlens, v_TGD, self.dropout)
        return self._backend(q_THD, k_TGD, v_TGD)


Backend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""attend(q_THD, k_TGD, v_TGD) -> out_THD, over the documents and for values like those that it was made for."""


def choose_backend(v_TGD: Tensor, dropout: float) -> Callable[[Sequence[int], Tensor, float], Backend]:
    """The class of the backend for values like `v_TGD`: the most specialised that can take them."""
    if v_TGD.device.type != "cuda" or v_TGD.dtype not in (torch.bfloat16, torch.float16) or dropout or not len(v_TGD):
        return PaddedGroups
    if torch.cuda.get_device_capability(v_TGD.device) < (8, 0):
        return PaddedGroups
    from minimind_sft.model import attention_kernels  # a second to import: only where there is a GPU

    fits = attention_kernels.varlen_groups_heads() and v_TGD.shape[-1] % 8 == 0
    return attention_kernels.Varlen if fits else PaddedGroups


class PaddedGroups:
    """Documents of similar length in one product, padded on the right to the longest of their group.

    Under a causal mask no position sees what follows it, so this padding needs no mask. This backend runs everywhere.
    A key/value head of a document is one of the sequences of a product, and the query heads that read it are there
    as so many queries per position: no key or value is repeated for them, and the products take rows as they lie.
    """

    def __init__(self, cu_seqlens: Sequence[int], v_TGD: Tensor, dropout: float = 0.0):
        lengths = [end - start for start, end in pairwise(cu_seqlens)]
        starts_S = torch.tensor(cu_seqlens[:-1], dtype=torch.int64)
        self._shapes, pad_P, unpad_TG = _padded_groups(starts_S, lengths, v_TGD.shape[1])
        self._pad_P, self._unpad_TG = send(pad_P, v_TGD.device), send(unpad_TG, v_TGD.device)
        self._short = SHORT if v_TGD.device.type == "cpu" and not dropout else 0
        self._dropout = dropout

    def __call__(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        q_TGQD = q_THD.unflatten(1, (k_TGD.shape[1], -1))
        q_groups, k_groups, v_groups = (
            rows.index_select(0, self._pad_P).split([sequences * length for sequences, length in self._shapes])
            for rows in (q_TGQD.flatten(0, 1), k_TGD.flatten(0, 1), v_TGD.flatten(0, 1))
        )
        out_groups = []
        for shape, *qkv in zip(self._shapes, q_groups, k_groups, v_groups, strict=True):
            q_BLQD, k_BLD, v_BLD = (rows.unflatten(0, shape) for rows in qkv)
            out_BLQD = (short_attention(q_BLQD, k_BLD, v_BLD).to(v_TGD.dtype) if shape[1] <= self._short
                        else causal_attention(q_BLQD, k_BLD, v_BLD, self._dropout))
            out_groups.append(out_BLQD.flatten(0, 1))
        return torch.cat(out_groups).index_select(0, self._unpad_TG).view_as(q_THD)


def _padded_groups(starts_S: Tensor, lengths: list[int],
                   kv_heads: int) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """The groups' shapes (B, L); for each of the P padded rows the row it copies; for each row its padded one.

    Rows are those of a tensor (T, G, ...) taken as (T * G, ...).
    """
    shapes, pad, unpad_TG = [], [], torch.empty(sum(lengths) * kv_heads, dtype=torch.int64)
    offset = 0
    for group in similar_lengths(lengths):
        longest, starts_R = lengths[group[-1]], starts_S[group]
        lengths_R = torch.tensor([lengths[i] for i in group])
        column_L = torch.arange(longest)
        token_RL = starts_R[:, None] + torch.minimum(column_L, lengths_R[:, None] - 1)  # padding repeats the last one
        row_RGL = token_RL[:, None] * kv_heads + torch.arange(kv_heads)[:, None]
        real_RGL = (column_L < lengths_R[:, None, None]).expand_as(row_RGL)
        unpad_TG[row_RGL[real_RGL]] = offset + real_RGL.flatten().nonzero().squeeze(1)
        shapes.append((len(group) * kv_heads, longest))
        pad.append(row_RGL.flatten())
        offset += row_RGL.numel()
    if not shapes:  # a batch without tokens still runs, so that every weight gets its (zero) gradient
        return [(0, 1)], unpad_TG, unpad_TG
    return shapes, torch.cat(pad), unpad_TG


def similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Indices in ascending order of length, cut into groups with at most MAX_PADDING padding; empty ones left out."""
    groups, real = [], 0
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i]):
        if groups and (real + lengths[i]) >= (1 - MAX_PADDING) * lengths[i] * (len(groups[-1]) + 1):
            groups[-1].append(i)
            real += lengths[i]
        else:
            groups.append([i])
            real = lengths[i]
    return groups


def causal_attention(q_BLQD: Tensor, k_BLD: Tensor, v_BLD: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over each sequence's own past, for each of the Q queries of a position.

    On a CPU the product is computed in at least float32 under any autocast, which is faster there than bfloat16; on
    other devices in the dtype of `v`, whose dtype the result (B, L, Q, D) has.
    """
    on_cpu = q_BLQD.device.type == "cpu"
    dtype = torch.promote_types(v_BLD.dtype, torch.float32) if on_cpu else v_BLD.dtype
    with torch.autocast(q_BLQD.device.type, enabled=False):
        out_BQLD = F.scaled_dot_product_attention(
            *(x.to(dtype) for x in (q_BLQD.transpose(1, 2), k_BLD[:, None], v_BLD[:, None])),
            dropout_p=dropout, is_causal=True, enable_gqa=True,
        )
    return out_BQLD.transpose(1, 2).to(v_BLD.dtype)
