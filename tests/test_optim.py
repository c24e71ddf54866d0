"""Which parameters decay."""

import pytest
import torch
from torch import nn

from minimind_sft.training.optim import build_optimizer


def test_weight_decay_shrinks_matrices_only():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.LayerNorm(3, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    optimizer = build_optimizer(model, peak=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert model[0].weight.detach() == pytest.approx(torch.full((3, 3), 0.95))  # 1 - 0.1 * 0.5
    assert model[1].weight.detach() == pytest.approx(torch.ones(3))
