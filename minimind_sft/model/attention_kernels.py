"""The backends of attention.py that are for GPUs: one kernel over the whole row, without padding.

Shapes: as in attention.py, 1 a batch of one.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import flex_attention, varlen

from minimind_sft.device import send

MIN_FLEX_ROWS = 128
"""FlexAttention works in blocks of this many rows; for fewer PyTorch takes the kernel that is made for decoding."""


class Varlen:
    """PyTorch's flash attention over documents end to end, in bfloat16 or float16; without dropout, on CUDA only."""

    def __init__(self, cu_seqlens: Sequence[int], v_TGD: Tensor, dropout: float = 0.0):
        assert not dropout
        self._cu_seqlens = send(torch.tensor(cu_seqlens, dtype=torch.int32), v_TGD.device)
        self._longest = max(end - start for start, end in pairwise(cu_seqlens))

    def __call__(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        return varlen.varlen_attn(
            q_THD.to(v_TGD.dtype), k_TGD.to(v_TGD.dtype), v_TGD, self._cu_seqlens, self._cu_seqlens, self._longest,
            self._longest, window_size=(-1, 0), enable_gqa=True,  # (-1, 0): all of the past, nothing of the future
        )


class Flex:
    """FlexAttention with the mask of documents: one block-sparse product over the whole row; without dropout.

    On a CPU it has no gradients.
    """

    def __init__(self, cu_seqlens: Sequence[int], v_TGD: Tensor, dropout: float = 0.0):
        assert not dropout
        lengths_S = torch.tensor([end - start for start, end in pairwise(cu_seqlens)])
        document_T = send(torch.arange(len(lengths_S)).repeat_interleave(lengths_S), v_TGD.device)

        def own_past(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (document_T[query] == document_T[key]) & (query >= key)

        self._mask = flex_attention.create_block_mask(own_past, None, None, cu_seqlens[-1], cu_seqlens[-1],
                                                        v_TGD.device)

    def __call__(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        attend = compiled_flex_attention() if v_TGD.device.type == "cuda" else flex_attention.flex_attention
        q_1HTD, k_1GTD, v_1GTD = (x.to(v_TGD.dtype).transpose(0, 1)[None] for x in (q_THD, k_TGD, v_TGD))
        return attend(q_1HTD, k_1GTD, v_1GTD, block_mask=self._mask, enable_gqa=True)[0].transpose(0, 1)


def varlen_groups_heads() -> bool:
    """Whether PyTorch's varlen attention knows key/value heads that several query heads read (from 2.12 on)."""
    return "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters


@functools.cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention as one kernel, for rows of any length; not compiled it would keep all scores in memory."""
    return torch.compile(flex_attention.flex_attention, dynamic=True)
