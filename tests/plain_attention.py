"""Written-out attention, one token and one head at a time, for comparison with the fast forms."""

import itertools
import math

import torch

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 6
CPU = torch.device("cpu")


def flat_qkv(tokens: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(tokens, heads, HEAD_DIM, dtype=dtype, requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)]


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: tuple[int, ...],
                    window: int | None = None) -> torch.Tensor:
    """Attends token by token and head by head; query heads 0, 1 read key/value head 0 and heads 2, 3 head 1."""
    out = torch.zeros_like(q)
    rows = []
    for start, end in itertools.pairwise(cu_seqlens):
        for t in range(start, end):
            heads = []
            for h in range(HEADS):
                past = slice(start if window is None else max(start, t + 1 - window), t + 1)
                scores = k[past, h // 2] @ q[t, h] / math.sqrt(HEAD_DIM)
                heads.append(scores.softmax(0) @ v[past, h // 2])
            rows.append(torch.stack(heads))
    return torch.stack(rows) if rows else out
