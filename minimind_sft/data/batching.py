"""Which samples form step k, on which rank, in which micro-batch.

All of it is a pure function of (dataset, seed, step): no rank asks another, and a run that stops at any step goes on
with exactly the samples it had not seen.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch.utils.data import Dataset

from minimind_sft.data.dataset import Samples
from minimind_sft.data.example import Example
from minimind_sft.labels import IGNORE_INDEX

FILLER = 0
"""A token id that every vocabulary has."""


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end, with no padding between them.

    `input_ids` and `labels` are int64 tensors of T positions (labels already shifted); document d stands at
    `cu_seqlens[d]:cu_seqlens[d + 1]`. What follows the last document fills T up to a size that the device likes; it
    is not supervised. `supervised_positions` (N,) are those with a label: a GPU would have to be waited for to find
    them. A batch may be empty: T = 0, cu_seqlens = (0,).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: tuple[int, ...]
    supervised_positions: torch.Tensor

    @property
    def supervised(self) -> int:
        return len(self.supervised_positions)

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; if it lies in pinned memory, whoever calls need not wait until it is there."""
        # On an Apple GPU PyTorch may go on reading memory that is free again by then (pytorch/pytorch issue 189690).
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> "Batch":
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(change(self.input_ids), change(self.labels), self.cu_seqlens, change(self.supervised_positions))


@dataclass(frozen=True)
class StepBatch:
    """What one rank computes in one optimizer step.

    `supervised_tokens` and `real_tokens` count the step's global batch, over all ranks: the loss is divided by them.
    Every rank has the same number of micro-batches, the last ones empty if need be.
    """

    step: int
    epoch: int
    sample_ids: tuple[int, ...]
    micro_batches: tuple[Batch, ...]
    supervised_tokens: int
    real_tokens: int

    def pin_memory(self) -> "StepBatch":
        """What a DataLoader with `pin_memory` calls."""
        return replace(self, micro_batches=tuple(one.pin_memory() for one in self.micro_batches))


def collate(examples: Sequence[Example], multiple: int = 1) -> Batch:
    """The Examples as one Batch, in the given order, filled up to a multiple of so many positions."""
    cu_seqlens = tuple(accumulate((len(example.input_ids) for example in examples), initial=0))
    positions = -(-cu_seqlens[-1] // multiple) * multiple

    def flat(arrays: list[np.ndarray], filler: int) -> torch.Tensor:
        row = np.full(positions, filler, np.int64)
        if arrays:
            np.concatenate(arrays, out=row[:cu_seqlens[-1]])
        return torch.from_numpy(row)

    labels = flat([example.labels for example in examples], IGNORE_INDEX)
    return Batch(flat([example.input_ids for example in examples], FILLER), labels, cu_seqlens,
                 (labels != IGNORE_INDEX).nonzero().squeeze(1))


def split_over_ranks(loads: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of `loads` for each rank, such that the ranks' summed loads are close (largest first, to the lightest).

    Deterministic: ties go to the lower index and the lower rank.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    lightest = [(0, rank) for rank in range(ranks)]
    for index in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        load, rank = heapq.heappop(lightest)
        shares[rank].append(index)
        heapq.heappush(lightest, (load + loads[index], rank))
    return shares


def pack_micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of `lengths` for each micro-batch of at most `max_tokens` (longest first, into the first that fits)."""
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


class TrainingSteps(Dataset):
    """`steps[k]` is what this rank computes in step k; `len(steps)` is all epochs.

    The last step of an epoch takes the samples that are left, however few. Micro-batches are filled up to a
    `multiple` of positions, which may make the last one longer than `micro_batch_tokens`.
    """

    def __init__(self, dataset: Samples, *, epochs: int, samples_per_step: int, micro_batch_tokens: int,
                 seed: int, rank: int = 0, ranks: int = 1, multiple: int = 1):
        self.dataset = dataset
        self.multiple = multiple
        self.samples_per_step = samples_per_step
        self.micro_batch_tokens = micro_batch_tokens
        self.seed = seed
        self.rank, self.ranks = rank, ranks
        self.steps_per_epoch = -(-len(dataset) // samples_per_step)
        self.epochs = epochs
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch

    def sample_ids(self, step: int) -> list[int]:
        """The global batch of a step, in the epoch's order."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # kept: drawing an order takes long where there are millions of samples
            self._epoch, self._order = epoch, self.dataset.epoch_order(self.seed, epoch)
        start = step_in_epoch * self.samples_per_step
        return self._order[start:start + self.samples_per_step].tolist()

    def __getitem__(self, step: int) -> StepBatch:
        sample_ids = self.sample_ids(step)
        lengths = {sample: self.dataset.lengths(sample) for sample in sample_ids}
        shares = split_over_ranks([sum(lengths[sample]) for sample in sample_ids], self.ranks)
        packed = []
        for share in shares:
            documents = [length for index in share for length in lengths[sample_ids[index]]]
            packed.append(pack_micro_batches(documents, self.micro_batch_tokens))

        own = [example for index in shares[self.rank] for example in self.dataset[sample_ids[index]]]
        micro_batches = [collate([own[i] for i in indices], self.multiple) for indices in packed[self.rank]]
        empty = max(map(len, packed)) - len(micro_batches)
        return StepBatch(
            step=step,
            epoch=step // self.steps_per_epoch,
            sample_ids=tuple(sample_ids),
            micro_batches=(*micro_batches, *[collate([])] * empty),
            supervised_tokens=sum(self.dataset.supervised(sample) for sample in sample_ids),
            real_tokens=sum(sum(one) for one in lengths.values()),
        )


class EvaluationBatches:
    """This rank's share of a whole dataset, in batches of at most `micro_batch_tokens`, of documents of similar length.

    Every rank has the same number of them, the last ones empty if need be: a sharded model is called by all at once.
    Iterating makes each batch when it is its turn, filled up to a `multiple` of positions.
    """

    def __init__(self, dataset: Samples, micro_batch_tokens: int, rank: int = 0, ranks: int = 1, multiple: int = 1):
        self._dataset, self._multiple = dataset, multiple
        documents = [(length, sample, number) for sample in range(len(dataset))
                     for number, length in enumerate(dataset.lengths(sample))]
        documents.sort(reverse=True)
        shares = [_consecutive(documents[other::ranks], micro_batch_tokens) for other in range(ranks)]
        self._batches = shares[rank] + [[]] * (max(map(len, shares)) - len(shares[rank]))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (collate([self._dataset[sample][number] for _, sample, number in batch], self._multiple)
                for batch in self._batches)


def _consecutive(documents: list[tuple[int, int, int]], max_tokens: int) -> list[list[tuple[int, int, int]]]:
    """The documents, whose first number is their length, cut into lists of at most `max_tokens`."""
    batches, room = [], 0
    for document in documents:
        if document[0] > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(document)
        room -= document[0]
    return batches
