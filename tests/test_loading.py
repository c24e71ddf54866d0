"""Training and evaluation sets from settings, and the lines printed about them."""

from pathlib import Path

import pytest
from programs import questions, write_rows

from minimind_sft.data.dataset import Mixture
from minimind_sft.data.loading import load_datasets
from minimind_sft.data.samples import PretrainEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError
from minimind_sft.settings.data import DataSettings


def texts(path: Path, count: int) -> str:
    return str(write_rows(path, [{"text": f"The number {i} in {path.stem}."} for i in range(count)]))


def load(folder: Path, *data_path: str, **settings) -> tuple:
    """Returns the training set, the evaluation set, and the printed lines."""
    said = []
    encoder = PretrainEncoder(load_tokenizer(None), 64)
    return (*load_datasets(DataSettings(data_path=data_path, **settings), encoder, folder / "prepared", said.append,
                           show_progress=False), said)


def test_a_share_of_the_rows_is_held_out(tmp_path):
    file = texts(tmp_path / "a.jsonl", 50)
    train_set, eval_set, said = load(tmp_path, file, eval_share=0.1)
    assert (len(train_set), len(eval_set)) == (45, 5)
    assert said[0].startswith(f"data        {file}: 50 of 50 rows, ")
    assert said[1:] == ["evaluation  5 samples are held out (--eval_share 0.1)"]
    assert load(tmp_path, file, eval_share=0.001)[2][1] == (
        "evaluation  1 sample is held out (--eval_share 0.001)")
    assert load(tmp_path, file, eval_share=0)[1] is None


def test_a_single_sample_is_trained_on_and_not_held_out(tmp_path):
    file = texts(tmp_path / "a.jsonl", 1)
    train_set, eval_set, said = load(tmp_path, file, eval_share=0.5)
    assert (len(train_set), eval_set) == (1, None)
    assert said[1:] == ["evaluation  none: where there is only one sample, --eval_share holds none out"]
    assert len(load(tmp_path, file, eval_share=0)[2]) == 1


def test_evaluation_files_are_loaded_whole_and_nothing_is_held_out(tmp_path):
    file, other = texts(tmp_path / "a.jsonl", 50), texts(tmp_path / "b.jsonl", 7)
    train_set, eval_set, said = load(tmp_path, file, eval_data_path=(other,))
    assert (len(train_set), len(eval_set)) == (50, 7)
    assert [line.split(",")[0] for line in said] == [f"data        {file}: 50 of 50 rows",
                                                     f"evaluation  {other}: 7 of 7 rows"]


def test_shares_are_drawn_and_printed(tmp_path):
    one, other = texts(tmp_path / "a.jsonl", 60), texts(tmp_path / "b.jsonl", 40)
    train_set, eval_set, said = load(tmp_path, f"{one}:0.9", f"{other}:0.1", eval_share=0)
    assert isinstance(train_set, Mixture) and eval_set is None
    assert [line[line.index("["):] for line in said] == ["[90 of the 100 samples of an epoch]",
                                                         "[10 of the 100 samples of an epoch]"]
    with pytest.raises(UserError, match="--eval_data_path: expected files without shares"):
        load(tmp_path, one, eval_data_path=(f"{other}:0.5",))


def test_skipped_rows_are_named_up_to_ten(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [*questions(12), {"text": "Some text."}])
    said = load(tmp_path, str(file), bad_rows="skip", eval_share=0)[2]
    skipped = [line for line in said if line.startswith("skipped ")]
    assert skipped[0].startswith(f"skipped     {file}:1: ") and skipped[9].startswith(f"skipped     {file}:10: ")
    assert skipped[10:] == ["skipped     ... (scripts/inspect_data.py lists all)"]
