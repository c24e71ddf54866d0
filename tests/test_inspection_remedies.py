"""The commands that the inspector prints fix what it found."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from programs import NEW, REPOSITORY, program, run_here, succeed, write_rows

pytestmark = pytest.mark.slow

SCRIPT = "scripts/inspect_data.py"
LONG = {"conversations": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1 2 3 " * 60}]}


def row(number: int) -> dict:
    return {"conversations": [{"role": "user", "content": f"Say {number}."},
                              {"role": "assistant", "content": f"It is {number}."}]}


def commands_for(*arguments: object) -> list[list[str]]:
    report = json.loads(run_here(SCRIPT, *arguments, "--json").stdout)
    return [shlex.split(command) for command in report["commands"]]


def test_fine_data_need_only_the_training_command(tmp_path):
    data = write_rows(tmp_path / "a b.jsonl", [row(1), row(2)])
    assert commands_for(data) == [["python", "trainer/train_full_sft.py", "--data_path", str(data)]]
    done = run_here(SCRIPT, data)
    assert done.stdout.endswith(f"to train    python trainer/train_full_sft.py --data_path '{data}'\n")
    text = write_rows(tmp_path / "text.jsonl", [{"text": "Once upon a time."}])
    assert commands_for(text, "--rows", "text", "--max_seq_len", 64) == [
        ["python", "trainer/train_pretrain.py", "--data_path", str(text), "--max_seq_len", "64"]]


def test_the_commands_can_be_pasted_in_the_folder_trainer(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [row(1), row(1), row(2)])
    command, options = program(SCRIPT, data, "--json")
    done = subprocess.run(command, capture_output=True, **{**options, "cwd": REPOSITORY / "trainer"})
    fix, train = (shlex.split(line) for line in json.loads(done.stdout)["commands"])
    assert (fix[1], train[1]) == ("../scripts/convert_data.py", "train_full_sft.py")


def test_without_usable_rows_there_is_no_command(tmp_path):
    assert commands_for(write_rows(tmp_path / "bad.jsonl", [{"x": 1}])) == []


def test_the_commands_remove_what_was_found(tmp_path):
    held = write_rows(tmp_path / "eval.jsonl", [row(1), row(9)])
    data = write_rows(tmp_path / "data.jsonl", [row(1), row(2), row(2), {"bad": 1}, row(3), LONG])
    fix, train = commands_for(data, "--eval_data_path", held, "--max_seq_len", 100)
    assert fix[:2] == ["python", "scripts/convert_data.py"]
    assert fix[2:] == [str(data), "--out", "clean.jsonl", "--drop_duplicates", "--drop_in", str(held)]
    clean = tmp_path / "clean.jsonl"
    succeed(fix[1], *(str(clean) if part == "clean.jsonl" else part for part in fix[2:]))
    assert [json.loads(line) for line in clean.read_text().splitlines()] == [row(2), row(3), LONG]
    assert train == ["python", "trainer/train_full_sft.py", "--data_path", "clean.jsonl", "--eval_data_path",
                     str(held), "--bad_rows", "skip", "--max_seq_len", "384"]
    options = [str(clean) if part == "clean.jsonl" else part for part in train[2:]]
    report = json.loads(run_here(SCRIPT, *options[1:4], "--max_seq_len", "384", "--json").stdout)
    assert report["verdict"] == "fine"
    out = succeed(train[1], *options, *NEW, "--save_dir", tmp_path / "out", "--max_steps", 1)
    assert "3 of 3 rows" in out and "cut" not in out


def test_for_very_long_conversations_the_command_truncates_by_turns(tmp_path):
    longer = {"conversations": [part for one in range(80) for part in LONG["conversations"]]}
    (train,) = commands_for(write_rows(tmp_path / "long.jsonl", [longer]))
    assert train[4:] == ["--max_seq_len", "768", "--truncation", "turns"]


def test_mixtures_are_not_merged_into_one_file(tmp_path):
    names = [f"{write_rows(tmp_path / name, [row(1), row(1)])}:0.5" for name in ("a.jsonl", "b.jsonl")]
    (train,) = commands_for(*names)
    assert train == ["python", "trainer/train_full_sft.py", "--data_path", *names]


def test_flags_of_the_inspection_are_in_the_command(tmp_path):
    data: Path = write_rows(tmp_path / "a.jsonl", [row(1), row(2)])
    (train,) = commands_for(data, "--chat_template", "alpaca", "--batch_size", 4, "--train_on_prompt", 1)
    assert train[4:] == ["--train_on_prompt", "1", "--chat_template", "alpaca", "--batch_size", "4"]
