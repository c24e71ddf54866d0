"""The learning rate, and which parameters decay."""

import pytest
import torch
from torch import nn

from minimind_sft.training.optim import build_optimizer, learning_rate


@pytest.mark.parametrize(("update", "expected"), [
    (0, 1.0),  # the peak, at the first update
    (5, 0.55),  # halfway: the mean of peak and floor
    (10, 0.1),  # the last of 11 updates: the floor
    (99, 0.1),  # past the end: the floor
])
def test_cosine_falls_from_the_peak_to_its_floor(update, expected):
    assert learning_rate(update, updates=11, peak=1.0, min_ratio=0.1, warmup=0) == pytest.approx(expected)


def test_warmup_rises_linearly_and_the_cosine_begins_at_the_peak():
    rates = [learning_rate(update, updates=10, peak=4.0, min_ratio=0.0, warmup=3) for update in range(10)]
    assert rates[:4] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert rates[-1] == pytest.approx(0.0)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_single_update_has_the_peak_rate():
    assert learning_rate(0, updates=1, peak=2.0, min_ratio=0.1, warmup=0) == 2.0


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
