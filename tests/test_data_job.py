"""Training on data of any form, with the programs run as a user runs them."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from programs import CHAT, NEW, REPOSITORY, SFT, TORCHRUN, questions, refuse, run, run_here, succeed, write_rows

pytestmark = pytest.mark.slow

SHORT = ["--max_steps", 1, "--dtype", "float32", "--save_dtype", "float32"]


def identity(folder: Path) -> dict:
    return json.loads((folder / "full_sft_32.json").read_text(encoding="utf-8"))


def test_forms_mix_and_bad_rows_are_reported(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [*questions(30), {"instruction": "x", "output": ""}, {"text": "Some text."},
                                             {"messages": [{"role": "user", "content": "q"}]}])
    flags = [*NEW, *SHORT, "--data_path", rows, "--save_dir", tmp_path / "out"]
    done = run_here(SFT, *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-3:] == [
        f'error: {rows}:31: output: expected an answer, found ""',
        f"       {rows}:33: messages: expected at least one assistant turn, found none",
        "       scripts/inspect_data.py lists all, --bad_rows skip leaves them out"]
    shown = succeed(SFT, *flags, "--bad_rows", "skip")
    assert re.search(r"data        .*a\.jsonl: 31 of 33 rows, .*; 2 bad rows skipped", shown)
    assert f"skipped     {rows}:33: messages: expected" in shown


def test_a_mixture_draws_each_source_by_its_share(tmp_path):
    talk = write_rows(tmp_path / "a.jsonl", questions(30))
    write_rows(tmp_path / "b.jsonl", [{"text": f"The number {i} is even."} for i in range(10)])
    shown = succeed(SFT, *NEW, *SHORT, "--data_path", f"{talk}:0.25", f"{tmp_path}/b.*:0.75", "--save_dir", tmp_path,
                    "--eval_share", 0)
    assert "[10 of the 40 samples of an epoch]" in shown and "[30 of the 40 samples of an epoch]" in shown
    assert "training    1 step of 16 samples" in shown
    assert identity(tmp_path)["training"]["data"].popitem()[1][1] == [10, 30]


SLOW_TO_SAY_WHY = """
import runpy, sys, time
from minimind_sft import errors
report = errors._report
errors._report = lambda status, message: (time.sleep(2 if status == 2 else 0), report(status, message))[1]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_bad_row_stops_all_ranks_and_is_named_once(tmp_path):
    """The other rank is ready to end two seconds before the one that says why, which torchrun would then end."""
    rows, program = write_rows(tmp_path / "a.jsonl", [{"messages": 5}]), tmp_path / "slow.py"
    program.write_text(SLOW_TO_SAY_WHY)
    done = run(program, REPOSITORY / SFT, *NEW, "--data_path", rows, "--save_dir", tmp_path, module=TORCHRUN,
               PYTHONPATH=str(REPOSITORY))
    assert done.returncode != 0
    said = done.stderr.count("a.jsonl:1: messages: expected a list of turns, found 5")
    assert said == 2, "once by the rank that met it, once in torchrun's report"


def test_resuming_with_another_truncation_is_refused(sft_data, tmp_path):
    common = [*NEW, "--dtype", "float32", "--data_path", sft_data, "--save_dir", tmp_path]
    succeed(SFT, *common, "--max_steps", 1)
    line = refuse(SFT, *common, "--max_steps", 2, "--from_resume", 1, "--truncation", "turns")
    assert re.search("truncation was tail in .*, now it is turns; --allow_changed_data 1 continues anyway", line)


def test_a_chat_needs_the_chat_template_of_the_training(sft_data, tmp_path):
    succeed(SFT, *NEW, *SHORT, "--data_path", sft_data, "--save_dir", tmp_path, "--chat_template", "alpaca")
    asked = ["--save_dir", tmp_path, "--prompt", "hi", "--max_new_tokens", 3, "--temperature", 0]
    assert "chat_template" in refuse(CHAT, *asked)
    assert succeed(CHAT, *asked, "--chat_template", "alpaca").startswith("> hi\n")


@pytest.mark.parametrize("flags, message", [
    (["--chat_template", "vicuna"], "--chat_template vicuna: expected chatml, alpaca or a file"),
    (["--end_of_turn", "<|nobody|>"], "--end_of_turn <|nobody|>: the tokenizer has no such control token"),
    (["--eval_data_path", "{data}:0.5"], "--eval_data_path: expected files without shares"),
    (["--prepared_dir", "/proc/prepared"], "/proc/prepared: the prepared data cannot be kept there"),
])
def test_bad_data_flags_are_refused(sft_data, tmp_path, flags, message):
    flags = [str(flag).replace("{data}", str(sft_data)) for flag in flags]
    assert message in refuse(SFT, *NEW, "--data_path", sft_data, "--save_dir", tmp_path, *flags)


def test_control_characters_of_the_data_are_escaped_in_errors(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [{"\x1b[31mred\nline\u202e": 1}])
    line = refuse(SFT, *NEW, "--data_path", rows, "--save_dir", tmp_path)
    assert r"found a row with \u001b[31mred\nline\u202e (--bad_rows" in line


@pytest.mark.parametrize("name, message", [
    ("none.jsonl", "error: --score none.jsonl: no such file"),
    ("model", "error: --score model: expected a file, found a folder (model/*.json names the files in it)"),
    (os.devnull, f"error: --score {os.devnull}: expected a regular file; it is read more than once"),
    ("README.md", "error: --score README.md: expected a file named *.jsonl, *.ndjson, *.json, *.csv"),
])
def test_score_finds_files_like_data_path(name, message):
    assert refuse(CHAT, "--score", name).startswith(message)


def test_a_save_to_disk_folder_is_trained_on_and_prepared_once(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(questions(30)).save_to_disk(tmp_path / "saved", num_shards=2)
    flags = [*NEW, *SHORT, "--data_path", tmp_path / "saved", "--save_dir", tmp_path / "out"]
    assert "/saved: 30 of 30 rows" in succeed(SFT, *flags)
    (first,) = (tmp_path / "out" / "prepared").glob("[0-9a-f]*")
    made = (first / "header.json").stat().st_mtime_ns
    succeed(SFT, *flags, "--save_weight", "again")
    assert (first / "header.json").stat().st_mtime_ns == made
    assert list((tmp_path / "out" / "prepared").glob("[0-9a-f]*")) == [first]


def test_a_table_with_messages_as_json_is_trained_on(tmp_path):
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "messages", "note"])
        table.writerows([number, json.dumps(row["conversations"], ensure_ascii=False), ""]
                        for number, row in enumerate(questions(30)))
    shown = succeed(SFT, *NEW, *SHORT, "--data_path", tmp_path / "a.csv", "--save_dir", tmp_path)
    assert "/a.csv: 30 of 30 rows" in shown
