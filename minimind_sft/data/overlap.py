"""Finds evaluation samples that are among the training samples."""

from collections.abc import Iterator

import numpy as np

from minimind_sft.data.dataset import ExampleDataset, Mixture, Samples
from minimind_sft.data.stored_tokens import BLOCK

LOOKS = 16
"""Tokens of a sample that are compared first, spread over it; all are only if these agree."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def count_shared(train_set: Samples, eval_set: Samples) -> int:
    """Returns how many samples of `eval_set` have the same tokens as one of `train_set`."""
    parts = list(_parts(eval_set))
    sketches = [_sketches(part) for part in parts]
    wanted = np.unique(np.concatenate(sketches)) if sketches else np.zeros(0, np.uint64)
    known = {tokens for part in _parts(train_set)
             for tokens in _tokens(part, np.flatnonzero(np.isin(_sketches(part), wanted)))}
    return sum(tokens in known for part in parts for tokens in _tokens(part, np.arange(len(part))))


def _parts(samples: Samples) -> Iterator[ExampleDataset]:
    yield from samples.sources if isinstance(samples, Mixture) else [samples]


def _sketches(dataset: ExampleDataset) -> np.ndarray:
    """Returns a hash of each sample's length and of some of its tokens, (samples,)."""
    starts, ends = dataset.token_spans()
    hashes = np.zeros(len(starts), np.uint64)
    for chosen in _neighbours(starts):
        first = starts[chosen].min()
        tokens = dataset.token_ids[first:ends[chosen].max()]
        hashes[chosen] = _hashes(tokens, starts[chosen] - first, ends[chosen] - starts[chosen])
    return hashes


def _neighbours(starts: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of samples in groups that lie close together in the file."""
    order = np.argsort(starts, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(starts[order] // BLOCK)) + 1)[:len(starts)]


def _hashes(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    hashes = lengths.astype(np.uint64)
    with np.errstate(over="ignore"):
        for look in range(LOOKS):
            seen = tokens[starts + (lengths - 1) * look // (LOOKS - 1)]
            hashes = (hashes ^ seen.astype(np.uint64)) * FACTOR
            hashes ^= hashes >> np.uint64(29)
    return hashes


def _tokens(dataset: ExampleDataset, indices: np.ndarray) -> Iterator[bytes]:
    starts, ends = dataset.token_spans()
    for index in indices:
        yield dataset.token_ids[starts[index]:ends[index]].astype(np.int32).tobytes()
