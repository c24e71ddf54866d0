"""The backend of attention.py that is for GPUs: one kernel over the whole row, without padding.

FlexAttention is not among them: on an H100 (PyTorch 2.11) its block-sparse product over a row took 1.5 to 2 times as
long as padded groups, at 4,096 to 32,768 tokens, and it has to be compiled first.

Shapes: as in attention.py.
"""

import inspect
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import varlen

from minimind_sft.device import send


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


def varlen_groups_heads() -> bool:
    """Whether PyTorch's varlen attention knows key/value heads that several query heads read (from 2.12 on)."""
    return "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
