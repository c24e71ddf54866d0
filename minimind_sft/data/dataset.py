"""Datasets of samples: how they are stored, counted, mixed and held out, and in which order an epoch takes them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from minimind_sft.data.example import Example
from minimind_sft.data.samples import EncodedRow
from minimind_sft.data.stored_tokens import BLOCK, StoredTokens
from minimind_sft.errors import UserError
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.terminal import counted

MAX_NAMED = 1000
MAX_HELD_OUT = 2000
"""More samples would prolong an evaluation without making it much more precise."""


ALL_KINDS = "all"
"""The kind of a row that names none."""
OTHER_KINDS = "(other kinds)"
MAX_KINDS = 100
"""Kinds that a prepared dataset tells apart; the field may hold something else, such as an id of each row."""
MAX_KIND_CHARACTERS = 80

Tokens = np.ndarray | StoredTokens


class Group(NamedTuple):
    """The samples that come from one file and have the same `kind`."""

    source: str
    kind: str


def kind_of(row: dict) -> str:
    """Returns the kind that a row names in its field `kind`; `ALL_KINDS` if it names none."""
    kind = row.get("kind")
    return ALL_KINDS if kind is None else str(kind)[:MAX_KIND_CHARACTERS]


@dataclass
class DatasetCounts:
    """Counts of rows, by what they became, and of their tokens."""

    rows: int = 0
    truncated: int = 0
    tokens: int = 0
    supervised: int = 0
    dropped_rows: int = 0
    bad_rows: int = 0
    dropped: list[str] = field(default_factory=list)
    """Places of the first `MAX_NAMED` rows that kept nothing to learn."""
    bad: list[str] = field(default_factory=list)
    """The errors of the first `MAX_NAMED` rows that cannot be used."""

    def add(self, place: str, row: EncodedRow | UserError) -> None:
        """Counts one row."""
        self.rows += 1
        if isinstance(row, UserError):
            self.bad_rows += 1
            self.bad.append(str(row))
        elif not row.samples:
            self.dropped_rows += 1
            self.dropped.append(place)
        else:
            self.truncated += row.was_cut
            self.tokens += sum(len(example.labels) for sample in row.samples for example in sample)
            self.supervised += sum(int(np.count_nonzero(example.labels != IGNORE_INDEX))
                                   for sample in row.samples for example in sample)

    def __iadd__(self, other: "DatasetCounts") -> Self:
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            setattr(self, name, (mine + value)[:MAX_NAMED] if isinstance(value, list) else mine + value)
        return self

    def rename(self, before: list[str], now: list[str]) -> None:
        """Replaces the names that the files had when their rows were counted."""
        for lines in (self.dropped, self.bad):
            for number, line in enumerate(lines):
                old = next(((was, name) for was, name in zip(before, now, strict=True)
                            if was != name and line.startswith(f"{was}:")), None)
                if old:
                    lines[number] = old[1] + line.removeprefix(old[0])

    def summary(self) -> str:
        """Returns the counts in one line."""
        kept = self.rows - self.dropped_rows - self.bad_rows
        line = (f"{kept:,} of {counted(self.rows, 'row')}, {counted(self.tokens, 'token')}, {self.supervised:,} "
                f"supervised ({self.supervised / max(self.tokens, 1):.0%})")
        if self.truncated:
            line += f"; {self.truncated:,} cut at max_seq_len"
        if self.dropped_rows:
            shown = ", ".join(self.dropped[:3]) + (", ..." if self.dropped_rows > 3 else "")
            line += f"; {self.dropped_rows:,} dropped, nothing left to learn within max_seq_len ({shown})"
        if self.bad_rows:
            line += f"; {counted(self.bad_rows, 'bad row')} skipped"
        return line


class ExampleDataset:
    """Samples in flat arrays. A sample is the unit that batch_size counts: a conversation, or a chunk of text.

    A sample has one Example, or several if its chat template renders history differently from turn to turn.

    Attributes:
        fingerprint: the SHA-256 of the file that the samples come from, or a list of several; None if there is none.
        groups: the file and kind of the samples of each group.
    """

    def __init__(self, samples: Iterable[list[Example]] = ()):
        samples = list(samples)
        examples = [example for sample in samples for example in sample]
        self._set(np.concatenate([example.input_ids for example in examples] or [np.zeros(0, np.int32)]),
                  np.concatenate([example.labels for example in examples] or [np.zeros(0, np.int32)]),
                  np.fromiter(accumulate((len(one.labels) for one in examples), initial=0), np.int64),
                  np.fromiter(accumulate(map(len, samples), initial=0), np.int64), IGNORE_INDEX)
        self.fingerprint: Any = None
        self._set_groups([Group("samples", ALL_KINDS)], np.zeros(len(samples), np.int32))

    def _set(self, input_ids: Tokens, labels: Tokens, example_ends: np.ndarray, sample_ends: np.ndarray,
             ignore: int) -> None:
        """Sets the arrays; `ignore` stands for `IGNORE_INDEX` in `labels`, and both `ends` begin with 0."""
        self._input_ids, self._labels, self._ignore = input_ids, labels, ignore
        self._example_ends, self._sample_ends = example_ends, sample_ends
        self._chosen = np.arange(len(sample_ends) - 1)

    def _set_groups(self, groups: list[Group], group_of: np.ndarray) -> None:
        """Sets the groups, and for each sample the index of its own."""
        self.groups, self._group_of = groups, group_of

    def __len__(self) -> int:
        return len(self._chosen)

    def group_of(self, index: int) -> int:
        """Returns the index of a sample's group."""
        return int(self._group_of[self._chosen[index]])

    def __getitem__(self, index: int) -> list[Example]:
        examples = []
        for start, end in self._spans(index):
            stored = self._labels[start:end]
            labels = stored.astype(np.int32)
            labels[stored == self._ignore] = IGNORE_INDEX
            examples.append(Example(self._input_ids[start:end].astype(np.int32), labels))
        return examples

    def lengths(self, index: int) -> list[int]:
        """Returns the length in tokens of each Example of a sample."""
        return [end - start for start, end in self._spans(index)]

    def supervised(self, index: int) -> int:
        """Returns the number of supervised tokens of a sample."""
        return sum(int(np.count_nonzero(self._labels[start:end] != self._ignore)) for start, end in self._spans(index))

    def label_counts(self, vocab_size: int) -> np.ndarray:
        """Returns how often each token is a label, (vocab_size,), over all samples that share the arrays."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self._labels), BLOCK):
            labels = self._labels[start:start + BLOCK]
            counts += np.bincount(labels[labels != self._ignore], minlength=vocab_size)
        return counts

    def document_lengths(self) -> np.ndarray:
        """Returns the length in tokens of each document, over all samples that share the arrays."""
        return np.diff(self._example_ends)

    @property
    def token_ids(self) -> Tokens:
        """The tokens of all samples, in the file's own integer type; slices are arrays."""
        return self._input_ids

    def token_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the tokens of each sample start and end in `token_ids`, (samples,) each."""
        return (self._example_ends[self._sample_ends[self._chosen]],
                self._example_ends[self._sample_ends[self._chosen + 1]])

    def select(self, indices: ArrayLike) -> Self:
        """Returns the dataset of the samples at `indices`, which shares the arrays."""
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__, _chosen=self._chosen[np.asarray(indices, dtype=np.int64)])
        return chosen

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """Returns the sample ids in the order of an epoch, a pure function of (seed, epoch)."""
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def _spans(self, index: int) -> list[tuple[int, int]]:
        """Returns (start, end) of each Example of a sample in the flat arrays."""
        sample = self._chosen[index]
        first, last = self._sample_ends[sample], self._sample_ends[sample + 1]
        return [(int(start), int(end)) for start, end in pairwise(self._example_ends[first:last + 1])]


class Mixture:
    """Several datasets as one; with shares, an epoch draws a share of its samples from each of them.

    An epoch has as many samples as all sources together. A source goes through all its samples, across epochs if need
    be, before it starts again in another order, so that all its samples come equally often, give or take one.

    Args:
        shares: one number for each source, in any unit; None takes every sample once.
    """

    def __init__(self, sources: Sequence[ExampleDataset], shares: Sequence[float] | None = None):
        self.sources = list(sources)
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self.draws = None if shares is None else split_by_shares(len(self), shares)

    @property
    def groups(self) -> list[Group]:
        return [group for source in self.sources for group in source.groups]

    def group_of(self, index: int) -> int:
        """As `ExampleDataset.group_of`; the groups of the sources follow one another."""
        source, inside = self._find(index)
        first = sum(len(one.groups) for one in self.sources[:self._number(index)])
        return first + source.group_of(inside)

    @property
    def fingerprint(self) -> list:
        return [[source.fingerprint for source in self.sources], self.draws]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> list[Example]:
        source, inside = self._find(index)
        return source[inside]

    def lengths(self, index: int) -> list[int]:
        """Returns the length in tokens of each Example of a sample."""
        source, inside = self._find(index)
        return source.lengths(inside)

    def supervised(self, index: int) -> int:
        """Returns the number of supervised tokens of a sample."""
        source, inside = self._find(index)
        return source.supervised(inside)

    def label_counts(self, vocab_size: int) -> np.ndarray:
        """As `ExampleDataset.label_counts`, over all sources and regardless of their shares."""
        return sum((source.label_counts(vocab_size) for source in self.sources), np.zeros(vocab_size, np.int64))

    def document_lengths(self) -> np.ndarray:
        """As `ExampleDataset.document_lengths`, over all sources."""
        return np.concatenate([source.document_lengths() for source in self.sources])

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """As `ExampleDataset.epoch_order`; with shares, some samples come several times and others not at all."""
        if self.draws is None:
            return np.random.default_rng([seed, epoch]).permutation(len(self))
        drawn = [start + self._drawn(number, draws, seed, epoch)
                 for number, (start, draws) in enumerate(zip(self._starts[:-1], self.draws, strict=True))]
        return np.random.default_rng([seed, epoch]).permutation(np.concatenate(drawn))

    def _drawn(self, number: int, draws: int, seed: int, epoch: int) -> np.ndarray:
        """Returns `draws` samples of a source for an epoch: a stretch of the endless series of its permutations."""
        size = len(self.sources[number])
        first, last = epoch * draws, (epoch + 1) * draws
        passes = [np.random.default_rng([seed, one, number, 0x5A4E]).permutation(size)
                  for one in range(first // size, -(-last // size))]
        start = first - first // size * size
        return np.concatenate([*passes, np.zeros(0, np.int64)])[start:start + draws].astype(np.int64)

    def _find(self, index: int) -> tuple[ExampleDataset, int]:
        number = self._number(index)
        return self.sources[number], int(index - self._starts[number])

    def _number(self, index: int) -> int:
        """Returns the number of the source that a sample comes from."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1


Samples = ExampleDataset | Mixture


def split_by_shares(total: int, shares: Sequence[float]) -> list[int]:
    """Splits `total` into whole numbers of at least 1 in proportion to `shares`, by largest remainders."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [max(int(part), 1) for part in exact]
    for index in sorted(range(len(shares)), key=lambda i: (int(exact[i]) - exact[i], i))[:max(total - sum(counts), 0)]:
        counts[index] += 1
    while sum(counts) > total and max(counts) > 1:  # compensates those raised to 1
        counts[counts.index(max(counts))] -= 1
    return counts


def hold_out(dataset: ExampleDataset, share: float, seed: int) -> tuple[ExampleDataset, ExampleDataset | None]:
    """Returns (training samples, held-out samples), a choice that depends only on seed, share and number of samples.

    With a share above 0 and at least two samples, between one and `MAX_HELD_OUT` samples are held out.
    """
    count = min(max(round(len(dataset) * share), 1), MAX_HELD_OUT, len(dataset) - 1) if share > 0 else 0
    if count < 1:
        return dataset, None
    shuffled = np.random.default_rng([seed, 0x0E7A1]).permutation(len(dataset))
    return dataset.select(np.sort(shuffled[count:])), dataset.select(np.sort(shuffled[:count]))
