"""Attention for CPUs over sequences short enough to keep their attention weights for the backward pass.

PyTorch's flash attention on a CPU cuts its products into pieces too small to be fast. Over short sequences, one batched
product takes a whole block of queries of all sequences. Plain twin: attention.document_attention, and within padded
documents padded_attention.flash_attention.

Local letters: M = L * Q queries of a sequence; of one block J positions, its W = J * Q queries, and the P positions
that these read.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind_sft.model.precision import at_least_float32

BLOCK = 64
"""Positions whose queries are multiplied at once. Positions after a block are left out of its products."""


def short_attention(q_BLQK: Tensor, k_BLK: Tensor, v_BLK: Tensor, window: int | None = None) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)) v over each sequence's own past (B, L, Q, K), in the dtype of `v`.

    Computes in at least float32 throughout.

    Args:
        window: how many positions, its own included, a position reads at most; None: all of its past.
    """
    window = min(window or q_BLQK.shape[1], q_BLQK.shape[1])
    with torch.autocast(v_BLK.device.type, enabled=False):
        out_BLQK = _ShortAttention.apply(*(at_least_float32(x) for x in (q_BLQK, k_BLK, v_BLK)), window)
    return out_BLQK.to(v_BLK.dtype)


class _ShortAttention(torch.autograd.Function):
    """Writes the gradient out, as in appendix B of Dao et al. 2022 (arXiv:2205.14135).

    With scores S = q k^T / sqrt(K), weights W = softmax(S), output W v and its gradient g:
    dv = W^T g, dW = g v^T, dS = W (dW - sum(W dW)), dq = dS k / sqrt(K), dk = dS^T q / sqrt(K).
    """

    @staticmethod
    def forward(ctx: Any, q_BLQK: Tensor, k_BLK: Tensor, v_BLK: Tensor, window: int) -> Tensor:
        _, positions, queries, head_dim = q_BLQK.shape
        q_BMK = q_BLQK.flatten(1, 2) * head_dim**-0.5
        column_J = torch.arange(min(positions, BLOCK), device=q_BLQK.device)
        row_W1 = column_J.repeat_interleave(queries)[:, None]
        future_WJ = column_J > row_W1
        weights, out = [], []
        for rows, past, own in _blocks(positions, queries, window):
            scores_BWP = torch.bmm(q_BMK[:, rows], k_BLK[:, past].mT)
            own_BWJ = scores_BWP[:, :, own]
            own_BWJ.masked_fill_(future_WJ[: own_BWJ.shape[1], : own_BWJ.shape[2]], -torch.inf)
            if window < positions:
                column_P = torch.arange(own.stop, device=q_BLQK.device) - own.start  # as rows: from the block's start
                scores_BWP.masked_fill_(column_P <= row_W1[: scores_BWP.shape[1]] - window, -torch.inf)
            weights_BWP = scores_BWP.softmax(-1)
            if any(ctx.needs_input_grad):
                weights.append(weights_BWP)
            out.append(torch.bmm(weights_BWP, v_BLK[:, past]))
        ctx.window = window
        ctx.save_for_backward(q_BMK, k_BLK, v_BLK, *weights)
        return torch.cat(out, 1).view_as(q_BLQK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLQK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BMK, k_BLK, v_BLK, *weights = ctx.saved_tensors
        _, positions, queries, head_dim = grad_BLQK.shape
        grad_BMK = grad_BLQK.flatten(1, 2)
        grad_q, grad_k_BLK, grad_v_BLK = [], torch.zeros_like(k_BLK), torch.zeros_like(v_BLK)
        with torch.autocast(v_BLK.device.type, enabled=False):
            for weights_BWP, (rows, past, _) in zip(weights, _blocks(positions, queries, ctx.window), strict=True):
                grad_BWK = grad_BMK[:, rows]
                grad_v_BLK[:, past] += torch.bmm(weights_BWP.mT, grad_BWK)
                products_BWP = torch.bmm(grad_BWK, v_BLK[:, past].mT).mul_(weights_BWP)
                grad_scores_BWP = products_BWP.addcmul_(weights_BWP, products_BWP.sum(-1, keepdim=True), value=-1)
                grad_q.append(torch.bmm(grad_scores_BWP, k_BLK[:, past]))
                grad_k_BLK[:, past] += torch.bmm(grad_scores_BWP.mT, q_BMK[:, rows])
        return torch.cat(grad_q, 1).mul_(head_dim**-0.5).view_as(grad_BLQK), grad_k_BLK, grad_v_BLK, None


def _blocks(positions: int, queries: int, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yields for each block: its queries, the positions up to its end that any of them reads, its own among these."""
    for start in range(0, positions, BLOCK):
        end, first = min(start + BLOCK, positions), max(start - window + 1, 0)
        yield slice(start * queries, end * queries), slice(first, end), slice(start - first, end - first)
