"""Summed cross-entropy of the next token, a chunk of positions at a time. Plain twin: layers.cross_entropy_sum.

Local letters: P supervised positions, the first of the N; W positions of one chunk, J rows of it; U tokens of the
vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind_sft.model.precision import at_least_float32, matmul_dtype

CHUNK = 1024
"""Positions whose logits exist at the same time."""

ROWS = 64
"""Chunks are padded to a multiple of this: on a CPU each new size of a bfloat16 product costs memory."""

CACHED = 2**19
"""A CPU turns so many logits into their gradient at a time, at most `ROWS` rows of them: few enough for its cache."""

BLOCK = 8192
"""Tokens of the vocabulary for which the head's gradient is computed at a time, before it is added to the total."""


def cross_entropy_sum(hidden_ND: Tensor, head_VD: Tensor, labels_P: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        head_VD = head_VD.detach()  # or autograd would still ask for a gradient, and the kernel would compute it
    return _ChunkedCrossEntropy.apply(hidden_ND, head_VD, labels_P)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes each chunk's gradient while its logits exist. Never holds all logits, and computes none twice."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, labels_P: Tensor) -> Tensor:
        dtype = matmul_dtype(head_VD)
        wants_hidden, wants_head, _ = ctx.needs_input_grad
        loss_sum = at_least_float32(hidden_ND.new_zeros(()))
        grad_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_head_VD = torch.zeros_like(head_VD) if wants_head else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight_VD = head_VD.to(dtype)
            for start in range(0, len(labels_P), CHUNK):
                chunk = slice(start, min(start + CHUNK, len(labels_P)))
                real = chunk.stop - start
                # Rows of zeros pad the chunk; they add nothing to the head's gradient.
                hidden_WD = F.pad(hidden_ND[chunk], (0, 0, 0, -real % ROWS)).to(dtype)
                logits_WV = F.linear(hidden_WD, weight_VD)
                loss_sum += _replace_by_gradient(logits_WV, labels_P[chunk])
                if grad_hidden_ND is not None:
                    grad_hidden_ND[chunk] = (logits_WV @ weight_VD)[:real]
                if grad_head_VD is not None:
                    for grad_UD, logits_WU in zip(grad_head_VD.split(BLOCK), logits_WV.split(BLOCK, 1), strict=True):
                        grad_UD += logits_WU.T @ hidden_WD
                del logits_WV  # or it would live until the next chunk's exists
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        # In place: a copy of the head's gradient would take as much memory as the head.
        return (
            None if grad_hidden_ND is None else grad_hidden_ND.mul_(grad_loss),
            None if grad_head_VD is None else grad_head_VD.mul_(grad_loss),
            None,
        )


def _replace_by_gradient(logits_WV: Tensor, labels: Tensor) -> Tensor:
    """Returns the summed cross-entropy of as many rows as there are labels; overwrites them with its gradient.

    The gradient of the logits is softmax minus one-hot. Rows without a label stay as they are.
    """
    loss_sum = at_least_float32(logits_WV.new_zeros(()))
    rows = rows_at_once(logits_WV.shape[1]) if logits_WV.device.type == "cpu" else len(logits_WV)
    for logits_JV, labels_J in zip(logits_WV[: len(labels)].split(rows), labels.split(rows), strict=True):
        logprobs_JV = at_least_float32(logits_JV).log_softmax(-1)
        loss_sum += F.nll_loss(logprobs_JV, labels_J, reduction="sum")
        logprobs_JV.exp_().scatter_add_(1, labels_J[:, None], logprobs_JV.new_full((len(labels_J), 1), -1.0))
        logits_JV.copy_(logprobs_JV)
    return loss_sum


def rows_at_once(vocab_size: int) -> int:
    """Returns how many rows of logits a CPU turns into their gradient at a time."""
    return min(ROWS, max(CACHED // vocab_size, 1))
