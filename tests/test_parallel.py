"""DDP and FSDP: the same gradients, and no wrapped model left behind."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from gradient_invariance import GradientKeeper
from processes import on_ranks
from tiny import TINY, TINY_MOE, random_documents

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import parallelize


def leaves_no_wrapped_model(ranks: Ranks) -> bool:
    def train() -> weakref.ref:
        model = MiniMindForCausalLM(TINY)
        wrapped = parallelize(model, ranks, "ddp", torch.float32)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        learner = Learner(model, wrapped, build_optimizer(model, 0.01, 0.1), scaler, ranks, torch.float32)
        steps = TrainingSteps(random_documents(4), BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size),
                              epochs=1, samples_per_step=4, seed=1)
        train_step(learner, steps[0], 1.0)
        return weakref.ref(wrapped)

    gc.disable()
    return train()() is None


def test_a_model_wrapped_by_ddp_is_freed_with_its_function():
    """It must not keep the process group alive (see `join_ranks`)."""
    assert on_ranks(2, leaves_no_wrapped_model) == [True, True]


CONFIGS = {
    "dense": TINY, "experts": TINY_MOE,
    "shared experts": replace(TINY_MOE, num_shared_experts=1, qk_norm=False),
    "gpt2": replace(TINY, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu", positions="learned"),
}


def gradients(ranks: Ranks, parallel: str, dtype: torch.dtype, model_name: str) -> list:
    """Returns the whole gradients of one step as float32 arrays."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(CONFIGS[model_name])
    wrapped = parallelize(model, ranks, parallel, dtype)
    keeper = GradientKeeper(model.parameters(), lr=0.0)
    steps = TrainingSteps(random_documents(8), BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size),
                          epochs=1, samples_per_step=8, seed=1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_step(Learner(model, wrapped, keeper, scaler, ranks, dtype), steps[0], grad_clip=0.0)
    return keeper.gradients


@pytest.mark.parametrize(("model_name", "dtype", "tolerance"), [
    ("dense", torch.float32, 1e-5), ("dense", torch.bfloat16, 2e-2), ("experts", torch.float32, 1e-5),
    ("experts", torch.bfloat16, 2e-2), ("shared experts", torch.bfloat16, 2e-2), ("gpt2", torch.bfloat16, 2e-2)])
def test_fsdp_gives_the_gradients_of_ddp(model_name, dtype, tolerance):
    """bfloat16 rounds by 4e-3; norms, routers and the residual stream are float32 in both."""
    ddp, fsdp = (on_ranks(2, gradients, parallel, dtype, model_name)[0] for parallel in ("ddp", "fsdp"))
    for one, other in zip(ddp, fsdp, strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(one)
