"""The communication of ranks: a failure on one rank stops all, and machines wait for their first rank."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist
from processes import on_ranks

from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.training.distributed import Ranks, _meet


def test_without_torchrun_s_store_the_main_rank_opens_one_at_the_given_port(monkeypatch):
    """As with its static rendezvous; all other tests meet as its ranks usually do."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in (("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    store, opened = dist.HashStore(), []
    monkeypatch.setattr(dist, "TCPStore", lambda *where, is_master, **_: opened.append((*where, is_master)) or store)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(_meet, (0, 1), (2, 2))) == [store, store]
    assert sorted(opened) == [("10.0.0.1", 29500, False), ("10.0.0.1", 29500, True)]


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
    assert on_ranks(2, fail_on, 1) == ["OtherRankFailed: rank 1 has failed (its message says why)",
                                       "UserError: its disk is full"]
    assert on_ranks(2, fail_on, None) == ["went on with [0, 10]"] * 2


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
