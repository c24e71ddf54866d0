"""Gradient checkpointing changes memory and time but no result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gradient_invariance import GradientKeeper
from processes import on_ranks
from tiny import TINY, TINY_MOE, random_documents

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.model import recompute
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.parallel import parallelize

ALONE = Ranks(0, 1, torch.device("cpu"))
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def build(use_moe: bool, dropout: float, checkpointing: bool) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(replace(TINY_MOE if use_moe else TINY, dropout=dropout))
    model.model.gradient_checkpointing = checkpointing
    return model


def two_steps(ranks: Ranks, checkpointing: bool, parallel: str, dtype: torch.dtype, use_moe: bool,
              dropout: float, compiled: bool = False) -> list[np.ndarray]:
    """Returns losses and whole gradients of two steps of several micro-batches each."""
    model = build(use_moe, dropout, checkpointing)
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=True, backend="aot_eager")
    wrapped = parallelize(model, ranks, parallel, dtype)
    keeper = GradientKeeper(model.parameters(), lr=0.0)
    steps = TrainingSteps(random_documents(16), BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size),
                          epochs=1, samples_per_step=8, seed=1)
    learner, numbers = Learner(model, wrapped, keeper, NO_SCALER, ranks, dtype), []
    for step in range(2):
        torch.manual_seed(5 + step)
        result = train_step(learner, steps[step], grad_clip=0.0)
        assert result.loss > 0 and (result.aux_loss > 0) == use_moe
        numbers += [np.array([result.loss, result.aux_loss]), *(np.array(one) for one in keeper.gradients)]
    return numbers


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other) > 20
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


BF16 = torch.bfloat16


@pytest.mark.parametrize(("use_moe", "dtype", "dropout"), [
    (False, torch.float32, 0.0), (False, BF16, 0.2), (True, torch.float32, 0.2), (True, BF16, 0.0)])
def test_losses_and_gradients_are_unchanged(use_moe, dtype, dropout):
    assert_same(*(two_steps(ALONE, checkpointing, "ddp", dtype, use_moe, dropout) for checkpointing in (False, True)))


@pytest.mark.slow
def test_losses_and_gradients_are_unchanged_under_torch_compile():
    torch.compiler.reset()
    plain = two_steps(ALONE, False, "ddp", torch.float32, True, 0.2)
    compiled = two_steps(ALONE, True, "ddp", torch.float32, True, 0.2, compiled=True)
    for mine, theirs in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("parallel", "use_moe", "dropout"), [
    ("ddp", False, 0.2), ("ddp", True, 0.0), ("fsdp", False, 0.0), ("fsdp", False, 0.2), ("fsdp", True, 0.2)])
def test_losses_and_gradients_are_unchanged_on_two_ranks(parallel, use_moe, dropout):
    without, with_it = (on_ranks(2, two_steps, checkpointing, parallel, BF16, use_moe, dropout)[0]
                        for checkpointing in (False, True))
    assert_same(without, with_it)


def saved_by_forward(model: MiniMindForCausalLM) -> tuple[torch.Tensor, int]:
    """Returns the loss of one batch and how many numbers its graph keeps besides the weights."""
    steps = TrainingSteps(random_documents(4), BatchLayout(80), epochs=1, samples_per_step=4, seed=1)
    batch = steps[0].micro_batches[0]
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch.input_ids, batch.labels, batch.cu_seqlens)
    return losses.loss_sum + losses.aux_loss_sum, sum(kept.values())


@pytest.mark.parametrize("use_moe", [False, True], ids=["dense", "experts"])
def test_the_graph_keeps_less_than_a_third(use_moe):
    (_, without), (_, with_it) = (saved_by_forward(build(use_moe, 0.0, checkpointing))
                                  for checkpointing in (False, True))
    assert with_it < without / 3


def test_recomputing_does_not_replace_the_routing():
    """Replacing it would keep the recomputed activations of every layer until the next step."""
    model = build(True, 0.0, True)
    loss, _ = saved_by_forward(model)
    first = [layer.mlp.routing for layer in model.model.layers]
    loss.backward()
    assert all(layer.mlp.routing is routing for layer, routing in zip(model.model.layers, first, strict=True))


def test_autocast_keeps_no_copies_of_weights():
    """Neither run of a layer needs a copy twice. They are as large as half of the model."""
    model, kept = build(False, 0.0, True), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: kept.append(torch.is_autocast_cache_enabled()))
    with torch.autocast("cpu", BF16):
        loss, _ = saved_by_forward(model)
        assert torch.is_autocast_cache_enabled()
    loss.backward()
    assert kept == [False] * 4


def test_evaluation_recomputes_nothing(monkeypatch):
    monkeypatch.setattr(recompute, "checkpoint", None)
    with torch.no_grad():
        saved_by_forward(build(False, 0.0, True))
