"""Rows become Examples: token ids with their labels, shifted once, here, and nowhere else."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from minimind_sft.config import IGNORE_INDEX
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import parse_conversation, parse_text
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

Rows = Iterable[tuple[str, dict]]
"""(place, row) pairs, as `reading.read_rows` gives them; the place is "file:line"."""


class Example(NamedTuple):
    """One document as the model sees it.

    `labels[i]` is the token that follows `input_ids[i]` where that token is supervised, else `IGNORE_INDEX`: the
    shift by one is done. Both are int32 arrays of the same length, one less than the document's tokens.
    """

    input_ids: np.ndarray
    labels: np.ndarray


def make_example(ids: Sequence[int], supervised: Sequence[bool]) -> Example:
    """The Example of a document of n >= 2 tokens; `supervised[i]` says whether token i is to be predicted."""
    ids_array = np.asarray(ids, dtype=np.int32)
    labels = np.where(np.asarray(supervised, dtype=bool)[1:], ids_array[1:], np.int32(IGNORE_INDEX))
    return Example(ids_array[:-1], labels.astype(np.int32))


@dataclass
class DatasetCounts:
    """What became of the rows."""

    rows: int = 0
    truncated: int = 0
    dropped: list[str] = field(default_factory=list)
    """Places of the rows that kept no supervised token."""
    tokens: int = 0
    supervised: int = 0

    def summary(self) -> str:
        kept = self.rows - len(self.dropped)
        line = (f"{kept:,} of {self.rows:,} rows, {self.tokens:,} tokens, {self.supervised:,} supervised "
                f"({self.supervised / max(self.tokens, 1):.0%})")
        if self.truncated:
            line += f"; {self.truncated:,} cut at max_seq_len"
        if self.dropped:
            shown = ", ".join(self.dropped[:3]) + (", ..." if len(self.dropped) > 3 else "")
            line += f"; {len(self.dropped):,} dropped, no supervised token left ({shown})"
        return line


class ExampleDataset:
    """Samples in flat arrays; a sample is what a batch counts: a conversation, or a chunk of text.

    A sample has one Example, or several where its chat template renders history differently from turn to turn.
    """

    def __init__(self, samples: Iterable[list[Example]]):
        input_ids, labels, example_ends, sample_ends = [], [], [0], [0]
        for examples in samples:
            for example in examples:
                input_ids.append(example.input_ids)
                labels.append(example.labels)
                example_ends.append(example_ends[-1] + len(example.input_ids))
            sample_ends.append(len(example_ends) - 1)
        self._input_ids = np.concatenate(input_ids) if input_ids else np.zeros(0, np.int32)
        self._labels = np.concatenate(labels) if labels else np.zeros(0, np.int32)
        self._example_ends = np.asarray(example_ends, dtype=np.int64)
        self._sample_ends = np.asarray(sample_ends, dtype=np.int64)
        self._chosen = np.arange(len(sample_ends) - 1)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> list[Example]:
        return [Example(self._input_ids[start:end], self._labels[start:end])
                for start, end in self._spans(index)]

    def lengths(self, index: int) -> list[int]:
        """Positions of each Example of sample `index`."""
        return [end - start for start, end in self._spans(index)]

    def supervised(self, index: int) -> int:
        """Supervised positions of sample `index`."""
        return sum(int(np.count_nonzero(self._labels[start:end] != IGNORE_INDEX))
                   for start, end in self._spans(index))

    def select(self, indices: Sequence[int]) -> Self:
        """The samples at `indices`, sharing the arrays."""
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__, _chosen=self._chosen[np.asarray(indices, dtype=np.int64)])
        return chosen

    def _spans(self, index: int) -> list[tuple[int, int]]:
        sample = self._chosen[index]
        first, last = self._sample_ends[sample], self._sample_ends[sample + 1]
        return [(int(start), int(end)) for start, end in pairwise(self._example_ends[first:last + 1])]


class SFTDataset(ExampleDataset):
    """Conversations, supervised on the assistant's own words and its end-of-turn token.

    A sequence longer than `max_seq_len` tokens loses its tail (no end-of-turn is put in its place); a row that keeps
    no supervised token is dropped. `counts` says how many.

    Raises:
        UserError: for a row that is no conversation, and if no row at all keeps a supervised token.
    """

    def __init__(self, rows: Rows, template: ChatTemplate, max_seq_len: int):
        self.counts = DatasetCounts()
        super().__init__(self._samples(rows, template, max_seq_len))
        if not len(self):
            raise UserError(f"no row of {self.counts.rows} keeps a supervised token within --max_seq_len "
                            f"{max_seq_len}; the first is {self.counts.dropped[0]}")

    def _samples(self, rows: Rows, template: ChatTemplate, max_seq_len: int) -> Iterator[list[Example]]:
        counts = self.counts
        for place, row in rows:
            sequences = template.encode(parse_conversation(row, place))
            counts.rows += 1
            counts.truncated += any(len(sequence.input_ids) > max_seq_len for sequence in sequences)
            examples = [make_example(sequence.input_ids[:max_seq_len], sequence.supervised[:max_seq_len])
                        for sequence in sequences]
            examples = [example for example in examples if (example.labels != IGNORE_INDEX).any()]
            if examples:
                counts.tokens += sum(len(example.labels) for example in examples)
                counts.supervised += sum(int((example.labels != IGNORE_INDEX).sum()) for example in examples)
                yield examples
            else:
                counts.dropped.append(place)


class PretrainDataset(ExampleDataset):
    """Texts, each ended by `<|endoftext|>`, supervised on every token but the first.

    A text longer than `max_seq_len` tokens is chunked, not cut: consecutive chunks share one token, so that every
    token after the first is predicted once. Each chunk is a sample.

    Raises:
        UserError: for a row without text, and if there is nothing to learn from.
    """

    def __init__(self, rows: Rows, tokenizer: Tokenizer, max_seq_len: int):
        self.counts = DatasetCounts()
        super().__init__(self._samples(rows, tokenizer, max_seq_len))
        if not len(self):
            raise UserError(f"no row of {self.counts.rows} has text; the first is {self.counts.dropped[0]}")

    def _samples(self, rows: Rows, tokenizer: Tokenizer, max_seq_len: int) -> Iterator[list[Example]]:
        counts = self.counts
        for place, row in rows:
            ids = [*tokenizer.encode_text(parse_text(row, place)), tokenizer.end_of_document_id]
            counts.rows += 1
            if len(ids) < 2:
                counts.dropped.append(place)
            for start in range(0, len(ids) - 1, max_seq_len - 1):
                chunk = ids[start:start + max_seq_len]
                counts.tokens += len(chunk) - 1
                counts.supervised += len(chunk) - 1
                yield [make_example(chunk, [True] * len(chunk))]


def hold_out(dataset: ExampleDataset, share: float, seed: int) -> tuple[ExampleDataset, ExampleDataset | None]:
    """(training samples, held-out samples); the choice depends on `seed`, `share` and the number of samples alone.

    At least one sample is held out where `share` is above 0 and there are two samples or more.
    """
    count = min(max(round(len(dataset) * share), 1), len(dataset) - 1) if share > 0 else 0
    if count < 1:
        return dataset, None
    shuffled = np.random.default_rng([seed, 0x0E7A1]).permutation(len(dataset))
    return dataset.select(np.sort(shuffled[count:])), dataset.select(np.sort(shuffled[:count]))
