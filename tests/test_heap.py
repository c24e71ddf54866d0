"""Counts page faults to see whether a process keeps the memory it frees."""

import subprocess
import sys

import pytest
from tiny_training import Training

from minimind_sft.training import loop

PROGRAM = """
import ctypes, platform, resource, sys, torch
from minimind_sft.training.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.empty(8 * 2**20 + 4096 * i, dtype=torch.uint8).fill_(1) for i in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of the usual size
print(platform.libc_ver()[0], *[faults() for _ in range(3)])
"""


def page_faults(how: str) -> list[int]:
    """Returns the page faults of three rounds of twenty 8 MiB tensors, freed after each round."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    library, *faults = done.stdout.split()
    if library != "glibc":
        pytest.skip("only glibc's heap is tuned")
    return [int(one) for one in faults]


@pytest.mark.slow
def test_memory_freed_by_a_step_is_reused_by_the_next():
    """160 MiB are 40,960 pages of the usual size."""
    first, *later = page_faults("keep")
    assert sum(later) < 0.2 * first
    assert sum(page_faults("leave")[1:]) > 3 * sum(later)


def test_every_run_keeps_freed_memory(tmp_path, monkeypatch):
    class Called(Exception):
        pass

    def raise_called() -> None:
        raise Called

    monkeypatch.setattr(loop, "keep_freed_memory", raise_called)
    with pytest.raises(Called):
        Training(tmp_path).run()
