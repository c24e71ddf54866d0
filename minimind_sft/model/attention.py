"""Attention among the tokens of each document.

`Documents` and `KVCache` (kv_cache.py) are the two contexts a decoder layer can run in. Both offer

    attend(layer_index, q_THD, k_TGD, v_TGD) -> out_THD

and keep from the layer where one sequence ends and the next begins.

Shapes: T tokens of all documents in one row, H query heads, G key/value heads, D head dim, S documents, L positions
of a document, P positions of padded groups.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PADDING = 0.2
"""Largest share of padding among the positions of one group of documents."""


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
            self._backend = choice(self._cu_seqlens, v_TGD.device, self.dropout)
        return self._backend(q_THD, k_TGD, v_TGD)


Backend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""attend(q_THD, k_TGD, v_TGD) -> out_THD, over the documents and on the device that it was made for."""


def choose_backend(v_TGD: Tensor, dropout: float) -> Callable[[Sequence[int], torch.device, float], Backend]:
    """The class of the backend for values like `v_TGD`: the most specialised that can take them."""
    if v_TGD.device.type != "cuda" or v_TGD.dtype not in (torch.bfloat16, torch.float16) or dropout or not len(v_TGD):
        return PaddedGroups
    if torch.cuda.get_device_capability(v_TGD.device) < (8, 0):
        return PaddedGroups
    from minimind_sft.model import attention_kernels  # a second to import: only where there is a GPU

    fits = attention_kernels.varlen_groups_heads() and v_TGD.shape[-1] % 8 == 0
    return attention_kernels.Varlen if fits else attention_kernels.Flex


class PaddedGroups:
    """Documents of similar length in one product, padded on the right to the longest of their group.

    Under a causal mask no position sees what follows it, so this padding needs no mask. This backend runs everywhere.
    """

    def __init__(self, cu_seqlens: Sequence[int], device: torch.device, dropout: float = 0.0):
        lengths = [end - start for start, end in pairwise(cu_seqlens)]
        starts_S = torch.tensor(cu_seqlens[:-1], dtype=torch.int64)
        self._shapes, pad_P, unpad_T = _padded_groups(starts_S, lengths)
        self._pad_P, self._unpad_T, self._dropout = send(pad_P, device), send(unpad_T, device), dropout

    def __call__(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        sizes = [rows * length for rows, length in self._shapes]
        q_groups, k_groups, v_groups = (x.index_select(0, self._pad_P).split(sizes) for x in (q_THD, k_TGD, v_TGD))
        out_groups = [
            causal_attention(*(x.unflatten(0, shape) for x in qkv), dropout=self._dropout).flatten(0, 1)
            for shape, *qkv in zip(self._shapes, q_groups, k_groups, v_groups, strict=True)
        ]
        return torch.cat(out_groups).index_select(0, self._unpad_T)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor to where the tokens are; a GPU gets it from pinned memory while it works on something else."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _padded_groups(starts_S: Tensor, lengths: list[int]) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """The groups' (rows, length), the token at each padded position, and the padded position of each token."""
    shapes, pad, unpad_T = [], [], torch.empty(sum(lengths), dtype=torch.int64)
    offset = 0
    for group in similar_lengths(lengths):
        longest, starts = lengths[group[-1]], starts_S[group]
        lengths_R = torch.tensor([lengths[i] for i in group])
        column_L = torch.arange(longest)
        token_RL = starts[:, None] + torch.minimum(column_L, lengths_R[:, None] - 1)  # padding repeats the last token
        real_RL = column_L < lengths_R[:, None]
        unpad_T[token_RL[real_RL]] = offset + real_RL.flatten().nonzero().squeeze(1)
        shapes.append((len(group), longest))
        pad.append(token_RL.flatten())
        offset += token_RL.numel()
    if not shapes:  # a batch without tokens still runs, so that every weight gets its (zero) gradient
        return [(0, 1)], unpad_T, unpad_T
    return shapes, torch.cat(pad), unpad_T


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


def causal_attention(q_SLHD: Tensor, k_SLGD: Tensor, v_SLGD: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over each sequence's own past; consecutive query heads share a key/value head.

    On a CPU the product is computed in at least float32 under any autocast, which is faster there than bfloat16; on
    other devices in the dtype of `v`, whose dtype the result (S, L, H, D) has.
    """
    on_cpu = q_SLHD.device.type == "cpu"
    dtype = torch.promote_types(v_SLGD.dtype, torch.float32) if on_cpu else v_SLGD.dtype
    with torch.autocast(q_SLHD.device.type, enabled=False):
        out_SHLD = F.scaled_dot_product_attention(
            *(x.to(dtype).transpose(1, 2) for x in (q_SLHD, k_SLGD, v_SLGD)),
            dropout_p=dropout, is_causal=True, enable_gqa=True,
        )
    return out_SHLD.transpose(1, 2).to(v_SLGD.dtype)
