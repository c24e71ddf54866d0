"""Training without one of its ideas: each variant replaces a fast way by the plain one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_sft.data import batching
from minimind_sft.data.batching import Batch
from minimind_sft.data.example import Example
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model import decoder
from minimind_sft.model.kernels import norm, padded_attention, selection
from minimind_sft.model.kernels.selection import plain_formulas
from minimind_sft.model.precision import at_least_float32


@dataclass(frozen=True)
class Variant:
    title: str
    """The idea that is switched off."""
    patches: Callable[[], list]
    needs_bfloat16: bool = False
    """Whether the idea concerns bfloat16, so that there is nothing to switch off in float32."""


def padded_collate(examples: Sequence[Example], multiple: int = 1) -> Batch:
    """Pads every document to the longest, unsupervised."""
    longest = max((len(example.labels) for example in examples), default=0)

    def padded(array: np.ndarray, value: int) -> np.ndarray:
        return np.pad(array, (0, longest - len(array)), constant_values=value)

    return real_collate([Example(padded(example.input_ids, 0), padded(example.labels, IGNORE_INDEX))
                         for example in examples], multiple)


real_collate = batching.collate


def low_precision_attention(q_BLQK: Tensor, k_BLK: Tensor, v_BLK: Tensor, dropout: float = 0.0) -> Tensor:
    """Attends in the dtype of `v`, which is bfloat16 under autocast."""
    out_BQLK = F.scaled_dot_product_attention(
        *(x.to(v_BLK.dtype) for x in (q_BLQK.transpose(1, 2), k_BLK[:, None], v_BLK[:, None])),
        dropout_p=dropout, is_causal=True, enable_gqa=True)
    return out_BQLK.transpose(1, 2)


def collate_all_wanted(examples: Sequence[Example], multiple: int = 1) -> Batch:
    """Claims that every position is supervised; the labels still say which ones are."""
    batch = real_collate(examples, multiple)
    return replace(batch, supervised_positions=torch.arange(len(batch.labels)))


def full_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Computes the logits of all positions, supervised or not."""
    logits_TV = at_least_float32(F.linear(hidden_ND[:len(labels_T)], head_VD))
    return F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE_INDEX, reduction="sum")


VARIANTS = {
    "padding": Variant("no padding: documents end to end", lambda: [patch.object(batching, "collate", padded_collate)]),
    "bfloat16": Variant("matrices multiplied in bfloat16", list, needs_bfloat16=True),
    "attention": Variant("batched products over short documents (else flash attention)",
                         lambda: [patch.object(selection, "SHORT", 0)]),
    "attention32": Variant("attention in float32 (else flash attention in bfloat16)",
                           lambda: [patch.object(selection, "SHORT", 0),
                                    patch.object(padded_attention, "flash_attention", low_precision_attention)],
                           needs_bfloat16=True),
    "groups": Variant("documents of similar length attended to together",
                      lambda: [patch.object(padded_attention, "MAX_PADDING", 0.0)]),
    "supervised": Variant("head and last feed-forward network on supervised positions only",
                          lambda: [patch.object(batching, "collate", collate_all_wanted),
                                   patch.object(decoder, "cross_entropy_sum", full_cross_entropy)]),
    "last": Variant("the last feed-forward network on supervised positions only",
                    lambda: [patch.object(selection, "skips_unread_positions", lambda device: False)]),
    "loss": Variant("the loss's gradient taken while its logits exist",
                    lambda: [plain_formulas("cross_entropy_sum")]),
    "gradients": Variant("gradients of RMSNorm, RoPE and SwiGLU written out",
                         lambda: [plain_formulas("apply_rope", "gated"),
                                  patch.object(norm, "rms_norm", norm.pytorch_rms_norm)]),
    "adamw": Variant("fused AdamW", list),
}


@contextmanager
def switched_off(name: str | None, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Switches the named idea off within the block; None leaves all of them on."""
    for group in optimizer.param_groups:
        group["fused"] = name != "adamw"
    with ExitStack() as stack:
        for one in VARIANTS[name].patches() if name else []:
            stack.enter_context(one)
        yield
