"""Several ranks: one order of the samples, one decision for all, and every fault of one is survived.

Most tests are short versions of proofs/rank_faults.py, which runs the recipe in real processes.
"""

import random
import signal
from pathlib import Path

import pytest
import torch
from kill_and_resume import RANDOM
from places import loss_is_nan
from processes import on_ranks
from rank_bench import Bench
from rank_faults import (
    changing_ranks,
    computes_nan,
    frozen,
    killed,
    signalled,
    signalled_twice,
    torchrun_restarts,
    writes_slowly,
)
from tiny import TINY, TINY_MOE, random_documents
from torch.utils.data import DataLoader

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import NOT_FINITE, train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import full_tensor, parallelize

pytestmark = pytest.mark.slow

STRATEGIES = pytest.mark.parametrize("parallel", ["ddp", "fsdp"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("ranks"), random.Random(5))


@pytest.mark.parametrize(("parallel", "signum", "rank"), [("ddp", signal.SIGINT, 0), ("fsdp", signal.SIGTERM, 1)],
                         ids=["DDP, Ctrl-C to the main rank", "FSDP, SIGTERM to the other"])
def test_a_signal_to_one_rank_stops_all_after_the_step(bench, parallel, signum, rank):
    signalled(bench, parallel, signum, [rank])


def test_a_signal_to_all_ranks_stops_them_after_the_step(bench):
    signalled(bench, "ddp", signal.SIGTERM, [0, 1])


def test_a_second_signal_ends_a_rank_at_once(bench):
    signalled_twice(bench, "ddp")


@STRATEGIES
def test_a_killed_rank_stops_the_others_and_loses_nothing(bench, parallel):
    killed(bench, parallel, RANDOM)


def test_four_ranks_lose_nothing_when_one_is_killed(bench):
    killed(bench, "ddp", RANDOM, world_size=4, after=4)


def test_a_kill_while_all_ranks_write_their_shards_loses_nothing(bench):
    killed(bench, "fsdp", "in a file of the resume state, half of it written", passes=4, rank=1)


def test_a_rank_with_a_slow_disk_changes_nothing(bench):
    writes_slowly(bench)


def test_a_frozen_rank_stops_the_others_in_time(bench):
    frozen(bench, "ddp")


@STRATEGIES
def test_a_nan_loss_on_one_rank_skips_one_step(bench, parallel):
    computes_nan(bench, parallel)


def test_any_number_of_ranks_continues_with_the_same_samples(bench):
    changing_ranks(bench, [(1, "ddp", 0), (2, "fsdp", 1), (4, "ddp", 4), (3, "fsdp", 0), (1, "ddp", 1)])


def test_torchrun_restarts_continue_from_the_resume_state(bench):
    torchrun_restarts(bench, kills=1)


def step_with_nan_on_rank_1(ranks: Ranks, parallel: str, dtype: torch.dtype, use_moe: bool) -> tuple:
    """Returns (reason to skip, whether all weights are unchanged, scale afterwards) for a bad and a good step."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY_MOE if use_moe else TINY)
    wrapped = parallelize(model, ranks, parallel, dtype)
    optimizer = build_optimizer(model, 0.01, 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0**10)
    steps = TrainingSteps(random_documents(8), BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size),
                          epochs=1, samples_per_step=4, seed=1)
    learner, told = Learner(model, wrapped, optimizer, scaler, ranks, dtype), []
    for number, faulty in enumerate((True, False)):
        if ranks.rank == 1:
            loss_is_nan(lambda faulty=faulty: faulty)
        before = [full_tensor(parameter.detach()).clone() for parameter in model.parameters()]
        result = train_step(learner, steps[number], 1.0)
        after = [full_tensor(parameter.detach()) for parameter in model.parameters()]
        told.append((result.skipped, all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
                     scaler.get_scale() if scaler.is_enabled() else 1.0))
        if ranks.rank == 1:
            MiniMindForCausalLM.forward = ORIGINAL_FORWARD
    return told


ORIGINAL_FORWARD = MiniMindForCausalLM.forward


@pytest.mark.parametrize(("parallel", "use_moe", "dtype"), [
    ("ddp", False, torch.float32), ("ddp", True, torch.float16),
    ("fsdp", False, torch.float16), ("fsdp", True, torch.float32)])
def test_all_ranks_skip_the_same_step(parallel, use_moe, dtype):
    scale = 512.0 if dtype == torch.float16 else 1.0
    outcomes = on_ranks(2, step_with_nan_on_rank_1, parallel, dtype, use_moe)
    assert outcomes[0] == outcomes[1] == [(NOT_FINITE, True, scale), (None, False, scale)]


def sees_the_folder(ranks: Ranks, folder: Path, shared: bool) -> str:
    try:
        with Checkpoints(folder / (str(ranks.rank) * (not shared)), keep=1, ranks=ranks, fresh=False) as checkpoints:
            checkpoints.check_shared()
            return "fine"
    except (UserError, ProcessLost) as error:
        return str(error)


def test_a_sharded_state_needs_a_folder_that_all_ranks_see(tmp_path):
    assert on_ranks(2, sees_the_folder, tmp_path / "resume", True) == ["fine", "fine"]
    main, other = on_ranks(2, sees_the_folder, tmp_path / "resume", False)
    assert main.startswith("rank 1 has failed")
    assert other.startswith(f"--parallel fsdp: {tmp_path}/resume/1 is not the folder that the main rank sees")


class Ids(torch.utils.data.Dataset):
    """The sample ids of each step, for a loader like that of the trainer."""

    def __init__(self, steps: TrainingSteps):
        self.steps = steps

    def __getitem__(self, step: int) -> list[int]:
        return list(self.steps[step].sample_ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_of_samples_does_not_depend_on_workers_or_ranks(workers):
    """Stopped in the second epoch and resumed on 2, 4, 3 and 1 ranks: each sample once per epoch, in one order."""
    def loaded(rank: int, ranks: int, first: int, last: int) -> list[list[int]]:
        steps = TrainingSteps(random_documents(30), BatchLayout(64, rank=rank, world_size=ranks), epochs=3,
                              samples_per_step=4, seed=1)
        return list(DataLoader(Ids(steps), sampler=range(first, last), batch_size=None, num_workers=workers))

    whole_run = loaded(0, 1, 0, 24)
    pieces = []
    for ranks, first, last in ((1, 0, 9), (2, 9, 11), (4, 11, 13), (3, 13, 15), (1, 15, 24)):
        shares = [loaded(rank, ranks, first, last) for rank in range(ranks)]
        assert all(share == shares[0] for share in shares)
        pieces += shares[0]
    assert pieces == whole_run
    for epoch in range(3):
        seen = [sample for step in whole_run[epoch * 8:epoch * 8 + 8] for sample in step]
        assert sorted(seen) == list(range(30))
    assert whole_run[:8] != whole_run[8:16]
