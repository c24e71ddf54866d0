"""Dividing rows into chunks and working on them in several processes."""

import multiprocessing
import os
import time

import pytest

from minimind_sft.data import workers
from minimind_sft.data.reading import RawRow


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes chunks so small that several processes share a few hundred rows."""
    monkeypatch.setattr(workers, "CHUNK_ROWS", 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})


def test_reading_stops_a_few_chunks_ahead_of_a_slow_one(small_chunks):
    read = 0

    def rows():
        nonlocal read
        for read in range(1, 4001):
            yield RawRow(f"a:{read}", b"{}")

    def work(chunk):
        if chunk[0].place == "a:1":
            time.sleep(0.5)

    results = workers.map_chunks(work, rows())
    next(results)
    assert read <= 8 * (4 * 3 + 4 * 3 + 1)
    results.close()
    assert multiprocessing.active_children() == []


def test_chunks_are_also_limited_in_bytes(monkeypatch):
    monkeypatch.setattr(workers, "CHUNK_BYTES", 100)
    for content in (b"x" * 60, {"text": "x" * 50}):
        chunks = list(workers.in_chunks(RawRow("", content) for _ in range(5)))
        assert [len(chunk.rows) for chunk in chunks] == [2, 2, 1]


def test_large_rows_wait_for_one_another(small_chunks, monkeypatch):
    """Otherwise twelve of the largest rows, and as many results, would be in memory at a time."""
    monkeypatch.setattr(workers, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(workers, "MAX_AHEAD_BYTES", 2500)
    read = 0

    def rows():
        nonlocal read
        for read in range(1, 41):
            yield RawRow(f"a:{read}", b"x" * 1000)

    results = workers.map_chunks(len, rows())
    next(results)
    assert read <= 12 + 3 + 1  # to decide whether workers are worth starting; then given out
    assert sum(1 for _ in results) == 39


def test_one_core_starts_no_worker(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)
    monkeypatch.setattr(workers, "CHUNK_ROWS", 1)
    rows = [RawRow(f"a:{number}", b"{}") for number in range(20)]
    results = list(workers.map_chunks(lambda chunk: (os.getpid(), chunk[0].place), rows))
    assert [result for _, result in results] == [(os.getpid(), row.place) for row in rows]
