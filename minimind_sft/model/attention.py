"""Attention: grouped-query heads, and which tokens they may read.

A decoder layer attends within a `Context` and does not know which: the documents of a flat batch (`Documents`), or
sequences whose earlier tokens are in a KV cache (kv_cache.py).
"""

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_sft.device import send
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.kernels import selection
from minimind_sft.model.layers import RMSNorm, apply_rope
from minimind_sft.model.precision import matmul_dtype


class Context(Protocol):
    """Holds the tokens that a forward pass attends to."""

    @property
    def length_T(self) -> Tensor:
        """The length of each token's document (T,), as far as it is known. Dynamic RoPE scaling goes by it."""

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, window: int | None) -> Tensor:
        """Returns what each token reads (T, H, K): its document's past, or the last `window` tokens of it."""


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), with QK-norm and RoPE where configured.

    window: how many tokens, itself included, a token reads at most (Beltagy et al. 2020, arXiv:2004.05150); None: all.
    """

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.layer_index = layer_index
        self.head_dim = config.head_dim
        query_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.window = None if layer_index in config.full_attention_layers else config.sliding_window
        self.rotates = config.positions == "rope" and layer_index not in config.layers_without_rope
        qkv_bias, out_bias = config.attention_bias != "none", config.attention_bias == "all"
        self.q_proj = nn.Linear(config.hidden_size, query_size, qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, qkv_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, out_bias)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x_TD: Tensor, rope: tuple[Tensor, Tensor] | None, context: Context) -> Tensor:
        q_THK, k_TGK, v_TGK = self.project(x_TD)
        q_THK, k_TGK = self.q_norm(q_THK), self.k_norm(k_TGK)
        if self.rotates:
            q_THK, k_TGK = apply_rope(q_THK, rope), apply_rope(k_TGK, rope)
        return self.o_proj(self.attend(context, q_THK, k_TGK, v_TGK).flatten(1))

    def project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries (T, H, K), keys and values (T, G, K), before QK-norm and RoPE.

        Whatever changes the projections (a fused product, a bias, an adapter, quantised weights) changes them here.
        """
        x_TD = x_TD.to(matmul_dtype(x_TD))  # autocast by itself would convert it for each product
        q_TO, k_TO, v_TO = self.q_proj(x_TD), self.k_proj(x_TD), self.v_proj(x_TD)
        return tuple(heads.unflatten(-1, (-1, self.head_dim)) for heads in (q_TO, k_TO, v_TO))

    def attend(self, context: Context, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        """Returns what each token reads (T, H, K). A compiled layer leaves this method out of its graph."""
        return context.attend(self.layer_index, q_THK, k_TGK, v_TGK, self.window)


class Documents:
    """The documents of a flat batch: attention stays inside each. Every forward pass makes its own.

    Args:
        cu_seqlens: document boundaries, [0, ...].
        device: the tokens' device.
        dropout: share of the attention weights to drop.
        filled_to: T, if tokens follow the last document. They become one more document, which `lengths` leaves out.
            All of them have position 0, because they may be more than the model has positions.
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
        positions_T = torch.arange(cu_seqlens[-1]) - starts_T
        positions_T[sum(self.lengths) :] = 0
        self.positions_T = send(positions_T, device)
        self._cu_seqlens = cu_seqlens
        self._kernel: selection.Attend | None = None

    @cached_property
    def length_T(self) -> Tensor:
        """The length of each token's document."""
        lengths_S = torch.tensor(self._cu_seqlens, dtype=torch.int64).diff()
        return send(lengths_S.repeat_interleave(lengths_S), self.positions_T.device)

    def attend(self, layer_index: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor,
               window: int | None = None) -> Tensor:
        """Returns what each token reads from its document (T, H, K)."""
        self._kernel = self._kernel or selection.attention_kernel(self._cu_seqlens, v_TGK, self.dropout)
        if self._kernel is None:
            return document_attention(q_THK, k_TGK, v_TGK, self._cu_seqlens, self.dropout, window)
        return self._kernel(q_THK, k_TGK, v_TGK, window)


def document_attention(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Sequence[int], dropout: float = 0.0,
                       window: int | None = None) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)) v, where each token reads itself and earlier tokens of its own document.

    With a window, it reads the last `window` tokens only, itself included.
    """
    documents = [slice(start, end) for start, end in pairwise(cu_seqlens)]
    return torch.cat([causal_attention(q_THK[d], k_TGK[d], v_TGK[d], dropout, window) for d in documents] or [q_THK])


def causal_attention(q_LHK: Tensor, k_LGK: Tensor, v_LGK: Tensor, dropout: float = 0.0,
                     window: int | None = None) -> Tensor:
    """Attends within one sequence (Vaswani et al. 2017, arXiv:1706.03762); query head h reads key/value head h // Q.

    Local letter: P the positions that are read, as many as L.
    """
    queries = q_LHK.shape[1] // k_LGK.shape[1]
    q_HLK, k_HPK, v_HPK = (x.transpose(0, 1) for x in (
        q_LHK, k_LGK.repeat_interleave(queries, 1), v_LGK.repeat_interleave(queries, 1)))
    scores_HLP = q_HLK @ k_HPK.mT / math.sqrt(q_LHK.shape[-1])
    every_LP = torch.ones(scores_HLP.shape[1:], dtype=torch.bool, device=q_LHK.device)
    unread_LP = every_LP.triu(1) if window is None else every_LP.triu(1) | every_LP.tril(-window)
    weights_HLP = F.dropout(scores_HLP.masked_fill(unread_LP, -torch.inf).softmax(-1), dropout)
    return (weights_HLP.to(v_HPK.dtype) @ v_HPK).transpose(0, 1)
