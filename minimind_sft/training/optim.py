"""The optimizer."""

import torch
from torch import nn

BETAS = (0.9, 0.95)


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
