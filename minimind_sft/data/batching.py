"""Decides which samples form step k, on which rank and in which micro-batch.

Everything is a pure function of (dataset, seed, step): ranks need not communicate, and a run that stops at any step
continues with exactly the samples it has not seen.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch.utils.data import Dataset

from minimind_sft.data.dataset import Samples
from minimind_sft.data.example import Example
from minimind_sft.labels import IGNORE_INDEX

FILLER = 0
"""A token id that exists in every vocabulary."""


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end, with no padding between them.

    input_ids, labels: int64, (T,); the labels are shifted already. Document d is `cu_seqlens[d]:cu_seqlens[d + 1]`.
        Positions after the last document, not supervised, fill T up to a size that suits the device.
    supervised_positions: (N,), the positions with a label. Finding them on a GPU would mean waiting for it.

    A batch may be empty: T = 0, cu_seqlens = (0,).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: tuple[int, ...]
    supervised_positions: torch.Tensor

    @property
    def supervised(self) -> int:
        return len(self.supervised_positions)

    def to(self, device: torch.device) -> "Batch":
        """Copies the batch to `device`; from pinned memory to a GPU, without waiting for the copy."""
        # On an Apple GPU PyTorch might read memory that is free again by then (pytorch/pytorch issue 189690).
        is_cuda = device.type == "cuda"
        return replace(self, input_ids=self.input_ids.to(device, non_blocking=is_cuda),
                       labels=self.labels.to(device, non_blocking=is_cuda),
                       supervised_positions=self.supervised_positions.to(device, non_blocking=is_cuda))

    def pin_memory(self) -> "Batch":
        """Copies the batch to pinned memory."""
        return replace(self, input_ids=self.input_ids.pin_memory(), labels=self.labels.pin_memory(),
                       supervised_positions=self.supervised_positions.pin_memory())


@dataclass(frozen=True)
class StepBatch:
    """The work of one rank in one optimizer step.

    `supervised_tokens` and `real_tokens` count the global batch, over all ranks: losses are divided by them. Every rank
    has the same number of micro-batches; its last ones may be empty.
    """

    step: int
    epoch: int
    sample_ids: tuple[int, ...]
    micro_batches: tuple[Batch, ...]
    supervised_tokens: int
    real_tokens: int

    def pin_memory(self) -> "StepBatch":
        """Called by a DataLoader with `pin_memory`."""
        return replace(self, micro_batches=tuple(one.pin_memory() for one in self.micro_batches))


def collate(examples: Sequence[Example], multiple: int = 1) -> Batch:
    """Joins Examples, in the given order, into a Batch whose length is filled up to a multiple of `multiple`."""
    cu_seqlens = tuple(accumulate((len(example.input_ids) for example in examples), initial=0))
    positions = -(-cu_seqlens[-1] // multiple) * multiple
    input_ids, labels = np.full(positions, FILLER, np.int64), np.full(positions, IGNORE_INDEX, np.int64)
    if examples:
        np.concatenate([example.input_ids for example in examples], out=input_ids[:cu_seqlens[-1]])
        np.concatenate([example.labels for example in examples], out=labels[:cu_seqlens[-1]])
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), cu_seqlens,
                 torch.from_numpy(np.flatnonzero(labels != IGNORE_INDEX)))


def split_over_ranks(loads: Sequence[int], world_size: int) -> list[list[int]]:
    """Returns for each rank indices of `loads` with similar sums: the largest load goes first, to the lightest rank.

    Deterministic: ties go to the lower index and the lower rank.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    lightest = [(0, rank) for rank in range(world_size)]
    for index in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        load, rank = heapq.heappop(lightest)
        shares[rank].append(index)
        heapq.heappush(lightest, (load + loads[index], rank))
    return shares


def pack_micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Returns indices of `lengths` for each micro-batch of at most `max_tokens`: longest first, first fit."""
    micro_batches: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[index] <= max_tokens
        place = next((i for i, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            micro_batches.append([])
            room.append(max_tokens)
            place = len(room) - 1
        micro_batches[place].append(index)
        room[place] -= lengths[index]
    return micro_batches


@dataclass(frozen=True)
class BatchLayout:
    """How the batches of one rank are laid out.

    micro_batch_tokens: the most tokens in a micro-batch.
    rank, world_size: which rank this is, of how many.
    multiple: micro-batches are filled up to a multiple of this, which may exceed `micro_batch_tokens`.
    """

    micro_batch_tokens: int
    rank: int = 0
    world_size: int = 1
    multiple: int = 1


class TrainingSteps(Dataset):
    """The steps of a run: `steps[k]` is the work of this rank in step k, and `len(steps)` the number of steps.

    The last step of an epoch takes the remaining samples, however few.

    Args:
        max_steps: ends the run before the last epoch does, if that is earlier; 0 sets no limit.
    """

    def __init__(self, dataset: Samples, layout: BatchLayout, *, epochs: int, samples_per_step: int, seed: int,
                 max_steps: int = 0):
        self.dataset, self.layout = dataset, layout
        self.samples_per_step, self.seed = samples_per_step, seed
        self.steps_per_epoch = -(-len(dataset) // samples_per_step)
        self.epochs, self.max_steps = epochs, max_steps
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return schedule_length(self.epochs, self.max_steps, self.steps_per_epoch)

    def sample_ids(self, step: int) -> list[int]:
        """Returns the sample ids of a step's global batch, in the epoch's order."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # kept, as drawing the order of millions of samples takes long
            self._epoch, self._order = epoch, self.dataset.epoch_order(self.seed, epoch)
        start = step_in_epoch * self.samples_per_step
        return self._order[start:start + self.samples_per_step].tolist()

    def __getitem__(self, step: int) -> StepBatch:
        layout, sample_ids = self.layout, self.sample_ids(step)
        lengths = {sample: self.dataset.lengths(sample) for sample in sample_ids}
        shares = split_over_ranks([sum(lengths[sample]) for sample in sample_ids], layout.world_size)
        packed = []
        for share in shares:
            documents = [length for index in share for length in lengths[sample_ids[index]]]
            packed.append(pack_micro_batches(documents, layout.micro_batch_tokens))

        own = [example for index in shares[layout.rank] for example in self.dataset[sample_ids[index]]]
        micro_batches = [collate([own[i] for i in indices], layout.multiple) for indices in packed[layout.rank]]
        empty = max(map(len, packed)) - len(micro_batches)
        return StepBatch(
            step=step,
            epoch=step // self.steps_per_epoch,
            sample_ids=tuple(sample_ids),
            micro_batches=(*micro_batches, *[collate([])] * empty),
            supervised_tokens=sum(self.dataset.supervised(sample) for sample in sample_ids),
            real_tokens=sum(sum(one) for one in lengths.values()),
        )


def schedule_length(epochs: int, max_steps: int, steps_per_epoch: int) -> int:
    """Returns the steps of all epochs, or `max_steps` if that is less; 0 sets no limit."""
    return min(epochs * steps_per_epoch, max_steps or epochs * steps_per_epoch)


class EvaluationBatches:
    """This rank's share of a dataset in batches of at most `micro_batch_tokens`, of documents of similar length.

    Every rank has the same number of batches, the last ones possibly empty, because all ranks call a sharded model
    together. Each batch is made when its turn comes.
    """

    def __init__(self, dataset: Samples, layout: BatchLayout):
        self.dataset, self._multiple = dataset, layout.multiple
        documents = [(length, sample, number) for sample in range(len(dataset))
                     for number, length in enumerate(dataset.lengths(sample))]
        documents.sort(reverse=True)
        shares = [_consecutive(documents[rank::layout.world_size], layout.micro_batch_tokens)
                  for rank in range(layout.world_size)]
        own = shares[layout.rank]
        self._batches = own + [[]] * (max(map(len, shares)) - len(own))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.with_samples())

    def with_samples(self) -> Iterator[tuple[Batch, list[int]]]:
        """Yields each batch with the samples that its documents belong to."""
        for batch in self._batches:
            yield (collate([self.dataset[sample][number] for _, sample, number in batch], self._multiple),
                   [sample for _, sample, _ in batch])


def _consecutive(documents: list[tuple[int, int, int]], max_tokens: int) -> list[list[tuple[int, int, int]]]:
    """Splits documents, whose first number is their length, into lists of at most `max_tokens`."""
    batches: list[list[tuple[int, int, int]]] = []
    room = 0
    for document in documents:
        if document[0] > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(document)
        room -= document[0]
    return batches
