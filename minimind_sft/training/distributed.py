"""Ranks: one process each, started by torchrun, or just this one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minimind_sft.device import resolve_device

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before the job is given up."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over the ranks."""
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.world_size == 1:
            return value
        most = torch.tensor(value, device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def wait(self) -> None:
        """Returns when all ranks are here."""
        self.sum(0.0)


@contextmanager
def join_ranks(device_name: str) -> Iterator[Ranks]:
    """Joins the process group that torchrun describes in the environment (NCCL on CUDA, Gloo on CPU), and leaves it.

    Without torchrun: one rank, no process group.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    device = resolve_device(device_name, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()
