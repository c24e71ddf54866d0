"""Several ranks: one order of the samples, one decision for all, and every fault of one is survived.

Most tests are short versions of proofs/rank_faults.py, which runs the recipe in real processes.
"""

import gc
import os
import random
import signal
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from gradient_invariance import GradientKeeper
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
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.prepared import prepare
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.identity import check_agreement, run_identity
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import NOT_FINITE, train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import full_tensor, parallelize
from minimind_sft.training.start import starting_model

STRATEGIES = pytest.mark.parametrize("parallel", ["ddp", "fsdp"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("ranks"), random.Random(5))


@STRATEGIES
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_step(bench, parallel, rank):
    signalled(bench, parallel, signal.SIGTERM if rank else signal.SIGINT, [rank])


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


@STRATEGIES
@pytest.mark.parametrize("use_moe", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize(("dtype", "scales"), [(torch.float32, (1.0, 1.0)), (torch.float16, (512.0, 512.0))])
def test_all_ranks_skip_the_same_step(parallel, use_moe, dtype, scales):
    outcomes = on_ranks(2, step_with_nan_on_rank_1, parallel, dtype, use_moe)
    assert outcomes[0] == outcomes[1] == [(NOT_FINITE, True, scales[0]), (None, False, scales[1])]


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


def gradients(ranks: Ranks, parallel: str, dtype: torch.dtype, use_moe: bool) -> list:
    """Returns the whole gradients of one step as float32 arrays."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY_MOE if use_moe else TINY)
    wrapped = parallelize(model, ranks, parallel, dtype)
    keeper = GradientKeeper(model.parameters(), lr=0.0)
    steps = TrainingSteps(random_documents(8), BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size),
                          epochs=1, samples_per_step=8, seed=1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_step(Learner(model, wrapped, keeper, scaler, ranks, dtype), steps[0], grad_clip=0.0)
    return keeper.gradients


@pytest.mark.parametrize("use_moe", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_fsdp_gives_the_gradients_of_ddp(use_moe, dtype, tolerance):
    """bfloat16 rounds by 4e-3; norms, routers and the residual stream are float32 in both."""
    ddp, fsdp = (on_ranks(2, gradients, parallel, dtype, use_moe)[0] for parallel in ("ddp", "fsdp"))
    for one, other in zip(ddp, fsdp, strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(one)


def fail_on(ranks: Ranks, failing: int) -> str:
    def action() -> int:
        if ranks.rank == failing:
            raise UserError("its disk is full")
        return 10 * ranks.rank

    try:
        return f"went on with {ranks.on_each(action)}"
    except (UserError, ProcessLost) as error:
        return f"{type(error).__name__}: {error}"


def test_a_failure_on_one_rank_stops_all():
    assert on_ranks(2, fail_on, 1) == ["ProcessLost: rank 1 has failed (its message says why)",
                                       "UserError: its disk is full"]
    assert on_ranks(2, fail_on, None) == ["went on with [0, 10]"] * 2


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


def acts_in_turn(ranks: Ranks, log: Path, fails: bool) -> str:
    def act() -> str:
        with log.open("a") as file:
            file.write(f"{ranks.rank} ")
        if fails:
            raise UserError("no good")
        time.sleep(0.3)
        with log.open("a") as file:
            file.write(f"{ranks.rank}. ")
        return "fine"

    try:
        return ranks.first_on_each_machine(act)
    except (UserError, ProcessLost) as error:
        return str(error)


def test_the_first_rank_of_a_machine_acts_before_the_others(tmp_path):
    assert on_ranks(3, acts_in_turn, tmp_path / "log", False) == ["fine"] * 3
    acted = (tmp_path / "log").read_text().split()
    assert acted[:2] == ["0", "0."] and sorted(acted) == ["0", "0.", "1", "1.", "2", "2."]
    assert on_ranks(3, acts_in_turn, tmp_path / "failed", True) == [
        "no good", *["the first rank of machine 0 has failed (its message says why)"] * 2]
    assert (tmp_path / "failed").read_text() == "0 "


def acts_on_two_machines(ranks: Ranks, log: Path) -> None:
    os.environ |= {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": str(ranks.rank // 2), "LOCAL_RANK": str(ranks.rank % 2)}

    def act() -> None:
        time.sleep(1.0 if ranks.rank == 2 else 0.0)  # the other machine has more to do
        with log.open("a") as file:
            file.write(f"{ranks.rank} ")

    ranks.first_on_each_machine(act)
    with log.open("a") as file:
        file.write(f"{ranks.rank}. ")


def test_all_machines_wait_for_the_slowest_one(tmp_path):
    on_ranks(4, acts_on_two_machines, tmp_path / "log")
    acted = (tmp_path / "log").read_text().split()
    assert sorted(acted[:2]) == ["0", "2"]
    assert sorted(acted) == sorted(f"{rank}{dot}" for rank in range(4) for dot in ("", "."))


def starts_together(ranks: Ranks, data: Path, out: Path, *odd_flags: str) -> str:
    """Starts like the recipe, with other flags for the second rank; returns what it says."""
    flags = odd_flags if ranks.rank else ()
    settings = parse_flags(SFTSettings, "", [
        "--from_weight", "none", "--hidden_size", "32", "--num_hidden_layers", "1", "--device", "cpu",
        "--save_dir", str(out), *flags, *(() if "--data_path" in flags else ("--data_path", str(data)))])
    template = ChatTemplate(load_tokenizer(settings.data.tokenizer_path))
    encoder = SFTEncoder(template, settings.data.max_seq_len)
    model = starting_model(settings, None, template.tokenizer, template, ranks)
    train_set = prepare(find_files(settings.data.data_path), encoder, out / "prepared")
    try:
        check_agreement(run_identity(settings, encoder, model.config, train_set, None), settings, model, ranks)
        return "fine"
    except (UserError, ProcessLost) as error:
        return str(error)


@pytest.mark.parametrize(("odd_flags", "field"), [
    ([], None),
    (["--learning_rate", "1e-3"], "learning_rate is 0.001 on rank 1, but 0.0005 on the main rank"),
    (["--seed", "7"], "seed is 7 on rank 1, but 42 on the main rank"),
    (["--data_path", "{other}"], "data is "),
    (["--epochs", "3"], "epochs is 3 on rank 1, but 2 on the main rank"),
])
def test_ranks_with_different_settings_are_refused(bench, tmp_path, odd_flags, field):
    other = tmp_path / "other.jsonl"
    other.write_text(bench.data.read_text() + "\n")
    odd_flags = [flag.format(other=other) for flag in odd_flags]
    main, second = on_ranks(2, starts_together, bench.data, tmp_path, *odd_flags)
    if field is None:
        assert (main, second) == ("fine", "fine")
    else:
        assert second.startswith(field) and main.startswith("rank 1 has failed")


class Ids(torch.utils.data.Dataset):
    """The sample ids of each step, for a loader like that of the trainer."""

    def __init__(self, steps: TrainingSteps):
        self.steps = steps

    def __getitem__(self, step: int) -> list[int]:
        return list(self.steps[step].sample_ids)


@pytest.mark.parametrize("workers", [0, 1, 4])
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
