"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

BETAS = (0.9, 0.95)


def learning_rate(update: int, updates: int, peak: float, min_ratio: float, warmup: int) -> float:
    """Returns the learning rate of update 0, 1, ..., updates - 1: linear warmup, then a cosine from `peak` down to
    `min_ratio` of it.

    It is a pure function of the update, so resuming does not change it.
    """
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    progress = (update - warmup) / max(updates - 1 - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (min_ratio + (1 - min_ratio) * cosine)


def build_optimizer(model: nn.Module, peak: float, weight_decay: float) -> torch.optim.AdamW:
    """Returns a fused AdamW with weight decay on matrices (embedding and projections), none on norms.

    It leaves frozen parameters alone, weight decay included.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=BETAS, fused=True)
