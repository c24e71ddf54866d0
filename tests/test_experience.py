"""The experience of weights: the tokens and lengths they were trained on, and advice about unfamiliar data."""

import json

import numpy as np
import pytest
from programs import SFT, succeed, write_rows

from minimind_sft.data.dataset import ExampleDataset, Mixture
from minimind_sft.data.example import make_example
from minimind_sft.training.advice import data_advice
from minimind_sft.training.experience import Experience


def samples(*documents: tuple[list[int], list[bool]]) -> ExampleDataset:
    return ExampleDataset([[make_example(ids, supervised)] for ids, supervised in documents])


def test_experience_records_label_tokens_and_the_longest_document():
    first = samples(([1, 2, 3, 4], [False, False, True, True]), ([1, 5], [False, True]))
    second = samples(([9, 2, 2, 2, 2, 2], [False] * 5 + [True]))
    known = Experience.none(12).after(first)
    assert (np.flatnonzero(known.seen).tolist(), known.longest) == ([3, 4, 5], 3)
    both = Experience.none(12).after(Mixture([first, second], [0.5, 0.5]))
    assert (np.flatnonzero(both.seen).tolist(), both.longest) == ([2, 3, 4, 5], 5)
    assert np.array_equal(both.seen, known.after(second).seen)


def test_experience_round_trips_through_the_sidecar_and_bad_records_are_ignored():
    known = Experience.none(6401).after(samples(([1, 6400, 3], [True] * 3)))
    record = {"training": {"experience": json.loads(json.dumps(known.for_sidecar()))}}
    again = Experience.from_sidecar(record, 6401)
    assert np.array_equal(again.seen, known.seen) and again.longest == known.longest
    for other in ({}, {"training": {}}, {"training": None}, {"training": {"experience": {"tokens": "?", "longest": 1}}},
                  {"training": {"experience": {"tokens": "AAAA", "longest": 1}}}):
        assert Experience.from_sidecar(other, 6401) is None


class Controls:
    """A stub tokenizer with only the control tokens that the advice reads."""

    def __init__(self, *ids: int):
        self.ids = ids

    def control_tokens(self) -> list[str]:
        return list(map(str, self.ids))

    def token_to_id(self, token: str) -> int:
        return int(token)


def test_data_unlike_the_earlier_training_data_are_noted():
    known, none = Experience.none(12).after(samples(([0, 2, 3, 4, 5], [True] * 5))), Controls()
    assert data_advice(known, samples(([0, 2, 3], [True] * 3)), none, "it") == []
    (line,) = data_advice(known, samples(([0, 2, 8, 9, 3], [True] * 5)), none, "it")
    assert "50% of the tokens to learn never occurred in what it was trained on: " in line and "longer" not in line
    assert data_advice(known, samples(([0, 2, 8, 9, 3], [True] * 5)), Controls(8, 9), "it") == []
    (line,) = data_advice(known, samples(([0, 2, 3], [True] * 3), ([2] * 9, [True] * 9)), none, "it")
    assert line.startswith("note        50% of the samples are longer than any that it was trained on (4 tokens): ")


def test_a_new_model_and_weights_of_unknown_origin_get_no_note_about_the_data():
    for known in (Experience.none(12), None):
        assert data_advice(known, samples(([0, 2, 8], [True] * 3)), Controls(), "it") == []


@pytest.mark.slow
def test_the_bundled_weights_know_the_bundled_conversations_but_not_other_chinese_text(repository, tmp_path):
    common = ["--from_weight", "pretrain", "--max_steps", 1, "--eval_share", 0, "--overwrite", "--save_dir", tmp_path]
    some = (repository / "dataset/sft_demo.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:300]
    (tmp_path / "known.jsonl").write_text("".join(some), encoding="utf-8")
    assert "note " not in succeed(SFT, *common, "--data_path", tmp_path / "known.jsonl")
    answer = "《红楼梦》描写贾宝玉与林黛玉的爱情悲剧，也刻画了封建家族由盛转衰的过程。"
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": answer}]}
            for i in range(20)]
    shown = succeed(SFT, *common, "--data_path", write_rows(tmp_path / "other.jsonl", rows))
    assert "% of the tokens to learn never occurred in what --from_weight pretrain was trained on" in shown
