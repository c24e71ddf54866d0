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
    chunks = list(workers.in_chunks(RawRow("", b"x" * 60) for _ in range(5)))
    assert list(map(len, chunks)) == [2, 2, 1]


def test_one_core_starts_no_worker(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)
    monkeypatch.setattr(workers, "CHUNK_ROWS", 1)
    rows = [RawRow(f"a:{number}", b"{}") for number in range(20)]
    results = list(workers.map_chunks(lambda chunk: (os.getpid(), chunk[0].place), rows))
    assert [result for _, result in results] == [(os.getpid(), row.place) for row in rows]
