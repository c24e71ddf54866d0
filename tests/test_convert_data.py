"""scripts/convert_data.py, run as a user runs it."""

import gzip
import json

import pytest
from programs import questions, refuse, succeed, write_rows

pytestmark = pytest.mark.slow

CONVERT = "scripts/convert_data.py"
SHAREGPT = {"conversations": [{"from": "human", "value": "晴?"}, {"from": "gpt", "value": "是 "}], "id": 5}
ALPACA = {"instruction": "add", "input": "1 2", "output": "3"}


def said(question: str, answer: str) -> dict:
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def written(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_form_becomes_conversations(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ALPACA, {"instruction": "x", "output": ""}]), encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(SHAREGPT).encode() + b'\n{"text": "t"}\n{broken\n'))
    printed = succeed(CONVERT, tmp_path / "*.json", tmp_path / "b.jsonl.gz", "--out", tmp_path / "out.jsonl")
    assert written(tmp_path / "out.jsonl") == [said("add\n1 2", "3"), said("晴?", "是 "), {"text": "t"}]
    assert "a.json:1 (row 2): output: expected an answer" in printed
    assert "b.jsonl.gz:3: expected one JSON object per row, found broken JSON" in printed
    assert f"{tmp_path / 'out.jsonl'}: 3 rows" in printed


def test_conversations_can_be_written_as_running_text(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [ALPACA, {"text": "t"}])
    (tmp_path / "b.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    succeed(CONVERT, rows, tmp_path / "b.txt", "--to", "text", "--out", tmp_path / "out.jsonl")
    assert [row["text"] for row in written(tmp_path / "out.jsonl")] == ["add\n1 2\n3", "t", "one", "two"]


def test_each_filter_reports_what_it_dropped(tmp_path):
    long = said("q", "中" * 200)
    rows = write_rows(tmp_path / "a.jsonl", [
        said("问", "好的"), said("问", "好"), said("问", "好的"), said("question", "回答"), long, said("问", "不行"),
        said("问", "好"), {"text": " "}])
    printed = succeed(CONVERT, rows, "--out", tmp_path / "out.jsonl", "--min_answer", 2, "--language", "zh:0.5",
                      "--max_tokens", 60, "--drop_duplicates")
    assert written(tmp_path / "out.jsonl") == [said("问", "好的"), said("问", "不行")]
    assert [line for line in printed.splitlines() if line.startswith("dropped")] == [
        "dropped     2 rows: an answer of fewer than 2 characters",
        "dropped     1 row: the same as an earlier row",
        "dropped     1 row: less than 50% zh",
        "dropped     1 row: more than 60 tokens",
        "dropped     1 row: no text"]


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}


def test_dialogues_in_text_become_conversations(tmp_path):
    rows = write_rows(tmp_path / "hh.jsonl", [
        {"chosen": "\n\nHuman: 晴?\n\nAssistant: 是\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: x"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "rejected": "y"},
        {"rejected": "y"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a: Human: b", "rejected": "y"}])
    printed = succeed(CONVERT, rows, "--dialogue_field", "chosen", "--out", tmp_path / "out.jsonl")
    assert written(tmp_path / "out.jsonl") == [
        {"conversations": [*said("晴?", "是")["conversations"], *said("b", "c")["conversations"]]},
        said("q", "a: Human: b")]
    assert "hh.jsonl:2: chosen: turn 3: expected Human: after Assistant:, found Assistant: again" in printed
    assert "hh.jsonl:3: chosen: expected a dialogue with Human: and Assistant:" in printed


def test_preference_rows_keep_their_chosen_answers(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT},
        {"chosen": "good", "rejected": "bad"}, said("plain", "row"), {"text": "t"},
        {"prompt": "q", "completion": "bad", "label": False}])
    printed = succeed(CONVERT, rows, "--preference", "chosen", "--out", tmp_path / "out.jsonl")
    assert written(tmp_path / "out.jsonl") == [said("q", "good"), said("q", "good"), said("plain", "row"),
                                               {"text": "t"}]
    assert "a.jsonl:3: prompt: expected a question beside chosen, found nothing" in printed
    assert "a.jsonl:6: label: expected an answer to learn, found false" in printed


def test_drop_fields_leaves_fields_out(tmp_path):
    pictured = {"image": "a.png", "weight": 0.5, **said("q", "a")}
    rows = write_rows(tmp_path / "a.jsonl", [pictured, said("b", "c")])
    printed = succeed(CONVERT, rows, "--out", tmp_path / "out.jsonl", "--drop_fields", "image", "weight")
    assert written(tmp_path / "out.jsonl") == [said("q", "a"), said("b", "c")] and "left out" not in printed
    printed = succeed(CONVERT, rows, "--out", tmp_path / "again.jsonl", "--drop_fields", "image")
    assert "a.jsonl:1: weight: expected this flag in a turn, found 0.5 for the whole row" in printed


def test_the_seed_decides_which_rows_are_held_out(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", questions(20))
    parts = []
    for seed in (1, 1, 2):
        succeed(CONVERT, rows, "--out", tmp_path / "out.jsonl", "--eval_rows", 5, "--eval_out", tmp_path / "eval.jsonl",
                "--seed", seed, "--overwrite", 1)
        parts.append((written(tmp_path / "out.jsonl"), written(tmp_path / "eval.jsonl")))
    assert parts[0] == parts[1] != parts[2]
    assert [len(part) for part in parts[0]] == [15, 5]
    assert sorted(json.dumps(row) for part in parts[0] for row in part) == sorted(
        json.dumps({"conversations": row["conversations"]}) for row in questions(20))


@pytest.mark.parametrize("flags, message", [
    (["--preference", "rejected"], "--preference: expected chosen, found 'rejected' (--help lists all flags)"),
    (["--preference", "chosen", "--dialogue_field", "x"], "--preference and --dialogue_field do not go together"),
    (["--language", "zh"], "--language zh: expected one of en, zh, ja, ko, ru with a share from 0 to 1, zh:0.5"),
    (["--language", "zh:2"], "--language zh:2: expected one of"),
    (["--eval_rows", 5], "--eval_rows and --eval_out go together"),
    (["--eval_rows", 9, "--eval_out", "e.jsonl"], "--eval_rows is 9, expected fewer than the 3 rows to write"),
    (["--min_answer", 99], "no row is left to write"),
    (["--out", "/proc/no/out.jsonl"], "--out /proc/no: cannot write there"),
    (["--out", "out.json"], "--out out.json: expected a name that ends in .jsonl"),
    (["--eval_rows", -1, "--eval_out", "e.jsonl"], "--eval_rows is -1, expected at least 0"),
    (["--seed", -1], "--seed is -1, expected 0 to 4,611,686,018,427,387,904"),
    (["--eval_rows", 1, "--eval_out", "{out}"], "--eval_out {out}: expected another file than --out"),
    (["none.jsonl"], "these words belong to no flag: none.jsonl (--help lists all flags)"),
])
def test_bad_flags_are_refused(tmp_path, flags, message):
    rows, out = write_rows(tmp_path / "a.jsonl", questions(3)), tmp_path / "out.jsonl"
    flags = [str(flag).replace("{out}", str(out)) for flag in flags]
    assert refuse(CONVERT, rows, "--out", out, *flags).startswith(f"error: {message.replace('{out}', str(out))}")
    assert not out.exists()


def test_flags_are_parsed_as_in_other_programs(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [*questions(2), *questions(2)])
    succeed(CONVERT, "--drop-duplicates", rows, f"--out={tmp_path / 'out.jsonl'}")
    assert len(written(tmp_path / "out.jsonl")) == 2
    assert "unknown flag --drop_duplicate: did you mean --drop_duplicates?" in refuse(CONVERT, rows, "--drop_duplicate")
    assert "unknown flag --data_path: here it is FILE (without a flag)" in refuse(CONVERT, "--data_path", rows)
    assert "--to: expected conversations or text, found 'txt'; did you mean text?" in refuse(CONVERT, "--to", "txt")
    assert "unknown flag --ou: did you mean --out?" in refuse("scripts/plot_metrics.py", "m.jsonl", "--ou", "x")


def test_existing_files_are_replaced_only_on_request_and_kept(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", questions(5))
    out, apart = tmp_path / "out.jsonl", tmp_path / "eval.jsonl"
    flags = [rows, "--out", out, "--eval_rows", 2, "--eval_out", apart]
    for path, flag in ((out, "out"), (apart, "eval_out")):
        path.write_text("mine")
        line = refuse(CONVERT, *flags)
        assert f"{path}: exists already; choose another --{flag}, or --overwrite moves it to {path}.previous" in line
        path.unlink()
    out.write_text("mine")
    printed = succeed(CONVERT, *flags, "--overwrite")
    assert f"overwrite   {out} moved to {out}.previous" in printed
    assert (tmp_path / "out.jsonl.previous").read_text() == "mine"
    assert (len(written(out)), len(written(apart))) == (3, 2)


def test_the_output_may_replace_the_input(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [ALPACA])
    before = rows.read_text()
    succeed(CONVERT, rows, "--out", rows, "--overwrite", 1)
    assert written(rows) == [said("add\n1 2", "3")]
    assert (tmp_path / "a.jsonl.previous").read_text() == before


def test_a_folder_as_output_is_refused_in_one_line(tmp_path):
    (tmp_path / "out.jsonl").mkdir()
    line = refuse(CONVERT, write_rows(tmp_path / "a.jsonl", [ALPACA]), "--out", tmp_path / "out.jsonl", "--overwrite")
    assert "out.jsonl: is a folder, expected a file or nothing; choose another --out" in line
