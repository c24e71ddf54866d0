"""Attention within documents on GPUs: one kernel over the flat batch, without padding.

Plain twin: attention.document_attention.

FlexAttention is not here: on an H100 (PyTorch 2.11) its block-sparse product over a flat batch took 1.5 to 2 times as
long as padded documents, at 4,096 to 32,768 tokens, and it has to be compiled first.
"""

import inspect
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import varlen

from minimind_sft.device import send


class VarlenAttention:
    """PyTorch's flash attention over documents end to end, in bfloat16 or float16; without dropout, on CUDA only."""

    def __init__(self, cu_seqlens: Sequence[int], device: torch.device):
        self._cu_seqlens = send(torch.tensor(cu_seqlens, dtype=torch.int32), device)
        self._longest = max(end - start for start, end in pairwise(cu_seqlens))

    def __call__(self, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None = None) -> Tensor:
        past = -1 if window is None or window >= self._longest else window - 1  # -1: all of it
        out_THK = varlen.varlen_attn(
            q_THK.to(v_TGK.dtype), k_TGK.to(v_TGK.dtype), v_TGK, self._cu_seqlens, self._cu_seqlens, self._longest,
            self._longest, window_size=(past, 0), enable_gqa=True,  # (past, 0): nothing of the future
        )
        assert isinstance(out_THK, Tensor), "varlen_attn returns more only where more is asked for"
        return out_THK


def groups_heads() -> bool:
    """Whether PyTorch's varlen attention lets several query heads read one key/value head (from 2.12 on)."""
    return "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
