"""Finds out whether a model gives each row of a batch the same bits whichever rows are beside it.

Kernels choose their order of summation by the shape of a product, and compute the end of a stretch of memory otherwise
than the rest. packed.py and fast_forms.py avoid both. Modules without a fast form, other devices and other processors
may not, so an engine asks once for each model, on the machine and with the threads that it runs with. Attention is left
out: it reads each sequence's own past, and whoever calls it decides in which shapes.
"""

import torch
from torch import Tensor

from minimind_sft.inference.lowering import LoweredModel
from minimind_sft.model.decoder import MiniMindForCausalLM

MAX_POSITION = 512
"""Rows are at positions below this."""


@torch.inference_mode()
def is_row_invariant(model: MiniMindForCausalLM | LoweredModel, rows: int = 48) -> bool:
    """Whether random rows get the same hidden states and logits alone, in twos, in threes, and so on up to `rows`."""
    generator = torch.Generator().manual_seed(0)
    device = model.embed_tokens.weight.device
    ids_T = torch.randint(model.config.vocab_size, (rows,), generator=generator).to(device)
    positions_T = torch.randint(min(model.config.context, MAX_POSITION), (rows,), generator=generator).to(device)
    expected = _compute(model, ids_T, positions_T)
    start, count = 0, 1
    while start < rows:  # parts of different sizes, at different places
        part = slice(start, start + count)
        if not all(torch.equal(got, all_rows[part])
                   for got, all_rows in zip(_compute(model, ids_T[part], positions_T[part]), expected, strict=True)):
            return False
        start, count = start + count, count + 1 + count // 4
    return True


def _compute(model: MiniMindForCausalLM | LoweredModel, ids_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Returns hidden states and logits."""
    hidden_TD = model.hidden_states(ids_T, positions_T, _EachAlone(positions_T + 1))
    return hidden_TD, model.logits(hidden_TD)


class _EachAlone:
    """In place of attention: what a row gets depends on its own query, key and value, and on no sum."""

    def __init__(self, length_T: Tensor):
        self.length_T = length_T

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None) -> Tensor:
        group = q_THK.shape[1] // k_TGK.shape[1]
        return (q_THK + (k_TGK + v_TGK).repeat_interleave(group, dim=1)).to(v_TGK.dtype)
