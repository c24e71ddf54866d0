"""Held-out samples, the samples that an epoch takes from several sources, and the counts."""

from collections import Counter

import numpy as np
import pytest

from minimind_sft.data import dataset as module
from minimind_sft.data.dataset import DatasetCounts, ExampleDataset, Group, Mixture, hold_out, kind_of, split_by_shares
from minimind_sft.data.example import make_example
from minimind_sft.data.samples import EncodedRow
from minimind_sft.errors import UserError


def numbered(count: int, first: int = 0) -> ExampleDataset:
    return ExampleDataset([[make_example([0, first + i], [False, True])] for i in range(count)])


def contents(dataset) -> list[tuple[int, ...]]:
    return [tuple(dataset[i][0].labels.tolist()) for i in range(len(dataset))]


def test_the_held_out_share_is_disjoint_and_depends_on_the_seed():
    dataset = numbered(50)
    train, held = hold_out(dataset, 0.1, seed=3)
    assert (len(train), len(held)) == (45, 5)
    assert sorted(contents(train) + contents(held)) == sorted(contents(dataset))
    assert contents(hold_out(dataset, 0.1, seed=3)[1]) == contents(held)
    assert contents(hold_out(dataset, 0.1, seed=4)[1]) != contents(held)


@pytest.mark.parametrize(("count", "share", "held"), [(50, 0.0, None), (1, 0.5, None), (2, 0.01, 1), (3, 1.0, 2)])
def test_holding_out_leaves_something_to_train_on(count, share, held):
    train, apart = hold_out(numbered(count), share, seed=0)
    assert (apart and len(apart)) == held
    assert len(train) == count - (held or 0)


def test_the_held_out_part_has_a_maximum(monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD_OUT", 3)
    train, apart = hold_out(numbered(50), 0.5, seed=0)
    assert (len(train), len(apart)) == (47, 3)


def test_lengths_and_supervised_counts_of_an_example_dataset():
    dataset = ExampleDataset([])
    assert len(dataset) == 0
    half = ExampleDataset([[make_example([1, 2, 3], [True] * 3), make_example([4, 5], [True, False])]])
    assert half.supervised(0) == 2 and half.lengths(0) == [2, 1]


@pytest.mark.parametrize("total, shares, counts", [
    (10, [0.7, 0.3], [7, 3]), (10, [2, 1], [7, 3]), (3, [1, 1], [2, 1]), (10, [1000, 1], [9, 1]), (5, [1], [5]),
    (1000, [.999, .0005, .0005], [998, 1, 1]), (2, [1, 1, 1], [1, 1, 1]),
])
def test_shares_become_whole_numbers(total, shares, counts):
    assert split_by_shares(total, shares) == counts


def test_sources_without_shares_are_each_taken_once():
    mixture = Mixture([numbered(3), numbered(2, first=10)])
    assert contents(mixture) == [(0,), (1,), (2,), (10,), (11,)]
    assert sorted(mixture.epoch_order(1, 0)) == [0, 1, 2, 3, 4]
    assert [mixture.lengths(i) for i in range(5)] == [[1]] * 5 and mixture.supervised(4) == 1


def test_an_epoch_of_a_mixture_has_the_share_of_each_source():
    mixture = Mixture([numbered(60), numbered(40)], [0.25, 0.75])
    for epoch in range(4):
        order = mixture.epoch_order(7, epoch)
        assert len(order) == 100 and sum(order < 60) == 25
        assert (order == Mixture([numbered(60), numbered(40)], [1, 3]).epoch_order(7, epoch)).all()
    assert (mixture.epoch_order(7, 0) != mixture.epoch_order(7, 1)).any()
    assert (mixture.epoch_order(7, 0) != mixture.epoch_order(8, 0)).any()


def test_over_the_epochs_every_sample_of_a_source_occurs_equally_often():
    mixture = Mixture([numbered(60), numbered(40)], [0.25, 0.75])
    taken = Counter()
    for epoch in range(10):
        taken.update(mixture.epoch_order(7, epoch).tolist())
        for samples in (range(60), range(60, 100)):
            assert max(taken[i] for i in samples) - min(taken[i] for i in samples) <= 1
    assert sum(taken[i] for i in range(60)) == 250


def test_the_groups_of_a_mixture_follow_one_another():
    first, second = numbered(2), numbered(3)
    first._set_groups([Group("a.jsonl", "x"), Group("a.jsonl", "y")], np.array([1, 0]))
    second._set_groups([Group("b.jsonl", "x")], np.array([0, 0, 0]))
    mixture = Mixture([first, second.select([2, 0])])
    assert [mixture.groups[mixture.group_of(index)] for index in range(4)] == [
        ("a.jsonl", "y"), ("a.jsonl", "x"), ("b.jsonl", "x"), ("b.jsonl", "x")]


def test_the_fingerprint_of_a_mixture_covers_sources_and_shares():
    def fingerprint_of(*shares):
        sources = [numbered(60), numbered(40)]
        for number, source in enumerate(sources):
            source.fingerprint = f"sum {number}"
        return Mixture(sources, shares).fingerprint

    assert fingerprint_of(0.25, 0.75) == fingerprint_of(1, 3) == [["sum 0", "sum 1"], [25, 75]]
    assert fingerprint_of(1, 3) != fingerprint_of(3, 1)


def test_counts_add_up_and_name_the_first_faults(monkeypatch):
    monkeypatch.setattr(module, "MAX_NAMED", 2)
    sample = [make_example([1, 2, 3], [False, False, True])]
    total = DatasetCounts()
    for part in range(3):
        counts = DatasetCounts()
        counts.add(f"a:{part}", EncodedRow([sample, sample], True, ""))
        counts.add(f"b:{part}", EncodedRow([], True, ""))
        counts.add(f"c:{part}", UserError(f"c:{part}: bad"))
        total += counts
    assert total == DatasetCounts(rows=9, truncated=3, tokens=12, supervised=6, dropped_rows=3, bad_rows=3,
                                  dropped=["b:0", "b:1"], bad=["c:0: bad", "c:1: bad"])
    assert total.summary() == ("3 of 9 rows, 12 tokens, 6 supervised (50%); 3 cut at max_seq_len; 3 dropped, "
                               "nothing left to learn within max_seq_len (b:0, b:1); 3 bad rows skipped")
    total.rename(["b", "c"], ["x", "y"])
    assert (total.dropped, total.bad) == (["x:0", "x:1"], ["y:0: bad", "y:1: bad"])


@pytest.mark.parametrize(("row", "kind"), [
    ({}, "all"), ({"kind": None}, "all"), ({"kind": "maths"}, "maths"), ({"kind": 3}, "3"),
    ({"kind": "a" * 99}, "a" * 80)])
def test_a_row_without_a_kind_is_of_all_kinds(row, kind):
    assert kind_of(row) == kind
