"""Decides which samples form a step, on which rank and in which micro-batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimind_sft.data.batching import (
    BatchLayout,
    EvaluationBatches,
    TrainingSteps,
    collate,
    pack_micro_batches,
    split_over_ranks,
)
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.example import Example, make_example


def numbered(lengths: list[int]) -> ExampleDataset:
    """Sample i is one document: token i at lengths[i] positions, the last half supervised."""
    return ExampleDataset(
        [[make_example([i] * (n + 1), [position > n // 2 for position in range(n + 1)])]
         for i, n in enumerate(lengths)])


def steps(dataset, epochs: int = 1, **layout) -> TrainingSteps:
    return TrainingSteps(dataset, BatchLayout(12, **layout), epochs=epochs, samples_per_step=4, seed=7)


def test_collate_lays_documents_end_to_end():
    batch = collate([Example(np.array([5, 6], np.int32), np.array([-100, 7], np.int32)),
                     Example(np.array([8], np.int32), np.array([9], np.int32))])
    assert batch.input_ids.tolist() == [5, 6, 8]
    assert batch.labels.tolist() == [-100, 7, 9]
    assert batch.cu_seqlens == (0, 2, 3)
    assert batch.supervised == 2
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


def test_an_empty_batch_has_no_document():
    batch = collate([])
    assert batch.input_ids.shape == batch.labels.shape == (0,)
    assert batch.cu_seqlens == (0,)


def test_padding_positions_belong_to_no_document():
    batch = collate([Example(np.array([5, 6, 8], np.int32), np.array([-100, 7, 9], np.int32))], multiple=4)
    assert batch.input_ids.tolist() == [5, 6, 8, 0]
    assert batch.labels.tolist() == [-100, 7, 9, -100]
    assert batch.cu_seqlens == (0, 3)
    assert batch.supervised_positions.tolist() == [1, 2]
    assert len(collate([], multiple=4).input_ids) == 0


def test_padding_micro_batches_does_not_change_the_counts():
    dataset = numbered([4, 6, 2, 8])
    plain, filled = steps(dataset)[0], steps(dataset, multiple=5)[0]
    assert [len(one.input_ids) for one in plain.micro_batches] == [12, 8]
    assert [len(one.input_ids) for one in filled.micro_batches] == [15, 10]
    assert (filled.real_tokens, filled.supervised_tokens) == (plain.real_tokens, plain.supervised_tokens) == (20, 10)
    assert [len(batch.input_ids) for batch in EvaluationBatches(dataset, BatchLayout(12, multiple=8))] == [8, 16]


def test_the_order_depends_only_on_seed_and_epoch():
    dataset = numbered([1] * 50)
    assert sorted(dataset.epoch_order(1, 0)) == list(range(50))
    assert (dataset.epoch_order(1, 0) == numbered([2] * 50).epoch_order(1, 0)).all()
    assert (dataset.epoch_order(1, 0) != dataset.epoch_order(1, 1)).any()
    assert (dataset.epoch_order(1, 0) != dataset.epoch_order(2, 0)).any()


def test_ranks_get_similar_loads():
    assert split_over_ranks([9, 1, 5, 5, 4], 2) == [[0, 4], [2, 3, 1]]


@given(lengths=st.lists(st.integers(1, 12), max_size=40))
def test_every_document_is_in_one_micro_batch_and_none_is_too_large(lengths):
    packed = pack_micro_batches(lengths, 12)
    assert sorted(i for indices in packed for i in indices) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in indices) <= 12 for indices in packed)


def test_a_step_counts_its_global_batch():
    batch = steps(numbered([4, 6, 2, 8]))[0]
    assert batch.real_tokens == 20
    assert batch.supervised_tokens == 10  # half of each document
    assert sum(one.supervised for one in batch.micro_batches) == 10


def test_the_last_step_of_an_epoch_takes_what_is_left():
    plan = steps(numbered([3] * 10), epochs=2)
    assert len(plan) == 6
    assert [len(plan.sample_ids(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert sorted(plan.sample_ids(0) + plan.sample_ids(1) + plan.sample_ids(2)) == list(range(10))
    assert plan[3].epoch == 1


@pytest.mark.parametrize(("max_steps", "steps"), [(0, 6), (4, 4), (6, 6), (9, 6)])
def test_a_run_ends_after_its_epochs_or_max_steps_whichever_is_first(max_steps, steps):
    assert len(TrainingSteps(numbered([3] * 10), BatchLayout(12), epochs=2, samples_per_step=4, seed=7,
                             max_steps=max_steps)) == steps


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_shares_the_same_global_batch(ranks):
    dataset = numbered([5, 1, 9, 3, 3, 12, 2, 7, 4])
    alone = steps(dataset)
    shares = [steps(dataset, rank=rank, world_size=ranks) for rank in range(ranks)]
    for step in range(len(alone)):
        batches = [share[step] for share in shares]
        seen = [int(token) for batch in batches for one in batch.micro_batches
                for token in one.input_ids[list(one.cu_seqlens[:-1])]]
        assert sorted(seen) == sorted(alone.sample_ids(step))
        assert len({len(batch.micro_batches) for batch in batches}) == 1, "every rank runs as many micro-batches"
        assert {batch.supervised_tokens for batch in batches} == {alone[step].supervised_tokens}


def test_a_rank_without_samples_gets_an_empty_micro_batch():
    lonely = steps(numbered([6]), rank=1, world_size=2)[0]
    assert [len(one.input_ids) for one in lonely.micro_batches] == [0]


def test_evaluation_sees_every_document_once_over_all_ranks():
    dataset = numbered([5, 1, 9, 3, 3])
    seen = [int(batch.input_ids[start]) for rank in range(2)
            for batch in EvaluationBatches(dataset, BatchLayout(12, rank, 2)) for start in batch.cu_seqlens[:-1]]
    assert sorted(seen) == [0, 1, 2, 3, 4]
