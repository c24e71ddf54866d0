"""A model and what trains it."""

from dataclasses import dataclass

import torch
from torch import nn

from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks


@dataclass(frozen=True)
class Learner:
    """A model and everything that turns its losses into better weights."""

    model: MiniMindForCausalLM
    wrapped: nn.Module
    """The module to call in training: the model as `parallelize` returns it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Scales float16 losses; disabled, and then without effect, in other precisions."""
    ranks: Ranks
    dtype: torch.dtype
    """The precision of matrix products; weights, norms, softmax and loss stay float32."""
