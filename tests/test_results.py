"""The answers file: what survives interruptions, and what is refused."""

import errno
import json
import math
from pathlib import Path

import pytest

from minimind_sft.errors import UserError
from minimind_sft.evaluation.results import Store, answers_path, are_numbers, open_store, sha256_of, write_results
from minimind_sft.files import sha256_of_file
from minimind_sft.locks import FolderLock

IDENTITY = {"weights": "ab12", "data": ["cd34"], "max_new_tokens": 8}


def filled(path: Path) -> Store:
    store = Store(path)
    task = store.task("answers", IDENTITY)
    task.add({"0": {"answer": "Rome"}, "1": {"answer": "罗马\n\u2028"}})
    return store


def test_items_are_there_again(tmp_path):
    path = tmp_path / "a.jsonl"
    filled(path).close()
    store = Store(path)
    assert store.items == 2
    task = store.task("answers", IDENTITY)
    assert task.done == {"0": {"answer": "Rome"}, "1": {"answer": "罗马\n\u2028"}}
    task.add({"2": {"answer": "Paris"}})
    assert store.task("votes", {"seed": 1}).done == {}
    store.close()
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == [
        {"evaluation": "answers", "identity": IDENTITY},
        {"task": "answers", "item": "0", "answer": "Rome"}, {"task": "answers", "item": "1", "answer": "罗马\n\u2028"},
        {"task": "answers", "item": "2", "answer": "Paris"}, {"evaluation": "votes", "identity": {"seed": 1}}]


def test_the_tasks_of_two_models_stand_beside_each_other(tmp_path):
    path = tmp_path / "a.jsonl"
    store = filled(path)
    store.of("--against").task("answers", {"weights": "other"}).add({"0": {"answer": "Milan"}})
    store.close()
    store = Store(path)
    assert store.task("answers", IDENTITY).done["0"] == {"answer": "Rome"}
    assert store.of("--against").task("answers", {"weights": "other"}).done == {"0": {"answer": "Milan"}}
    assert store.items == 3


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store(None, overwrite=False)
    task = store.task("answers", IDENTITY)
    task.add({"0": {"answer": "Rome"}})
    assert store.task("answers", IDENTITY).done == {"0": {"answer": "Rome"}}
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_anywhere_keeps_all_whole_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    filled(path).close()
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        store = Store(path)
        assert store.items == max(lines - 1, 0)
        store.task("answers", IDENTITY).add({"9": {"answer": "x"}})
        store.close()
        store = Store(path)
        assert store.items == max(lines - 1, 0) + 1
        store.close()


@pytest.mark.parametrize(("field", "value", "message"), [
    ("weights", "ffff", 'answers with another weights: "ab12", now "ffff"'),
    ("data", ["cd34", "ef"], 'answers with another data: ["cd34"], now ["cd34", "ef"]'),
    ("new", 1, "answers with another new: null, now 1"),
])
def test_items_of_something_else_are_refused(tmp_path, field, value, message):
    path = tmp_path / "a.jsonl"
    filled(path).close()
    before = path.read_bytes()
    store = Store(path)
    with pytest.raises(UserError, match="choose another --out, or --overwrite starts again") as refused:
        store.task("answers", {**IDENTITY, field: value})
    assert str(refused.value).startswith(f"{path}: holds {message}; ")
    store.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["{}", "[1]", "5", "not JSON", '{"task": "answers", "item": "0"}', '{"evaluation": 1}',
                                  '{"evaluation": "answers", "identity": []}', '{"evaluation": 1, "identity": {}}',
                                  '{"evaluation": "a", "evaluation": "b", "identity": {}}',
                                  '{"evaluation": "answers", "identity": {}}\n{"task": "answers", "item": 0}',
                                  '{"evaluation": "a", "identity": {}}\n{"evaluation": "a", "identity": {}}',
                                  '{"evaluation": "answers", "identity": {}}\n{"task": "other", "item": "0"}'])
def test_a_foreign_line_is_refused(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"a.jsonl:{line.count(chr(10)) + 1}: not a line of an evaluation's answers"):
        Store(path)
    assert path.read_text(encoding="utf-8") == line + "\n"


def test_a_file_of_somebody_else_is_neither_cut_nor_followed_by_ours(tmp_path):
    path, nested = tmp_path / "a.jsonl", "[" * 100_000
    for text, place in (("a note without its line end", ", last line"), (nested, ", last line"), (nested + "\n", ":1"),
                        ('{"text": "a row without its line end"}', ", last line")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"a.jsonl{place}: not a line of an evaluation's answers; choose another"):
            Store(path)
        assert path.read_text(encoding="utf-8") == text


def test_a_folder_or_a_link_to_nothing_is_no_answers_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(UserError, match=f"{name}: expected a file for the answers, found something else"):
            Store(tmp_path / name)
    assert not (tmp_path / "gone").exists()


def test_items_that_somebody_changed_are_refused(tmp_path):
    filled(tmp_path / "a.jsonl").close()
    store = Store(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"a.jsonl: answers: item 0: not a line of an evaluation's answers"):
        store.task("answers", IDENTITY, lambda values: "score" in values)
    assert store.task("answers", IDENTITY, lambda values: "answer" in values).done


@pytest.mark.parametrize(("values", "right"), [([1, -2.5], True), ([None], False), ([True], False), (["1"], False),
                                               ([math.nan], False), ([10**400], False), ([math.inf], False)])
def test_numbers_of_an_answers_file(values, right):
    assert are_numbers(values) is right


def test_two_evaluations_do_not_write_into_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderLock, "try_take", lambda lock: False)
    with pytest.raises(UserError, match=r"another evaluation is writing there \(a process that has just begun"):
        Store(tmp_path / "a.jsonl")


def test_a_foreign_results_file_is_not_replaced(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="exists and holds something other than results of an evaluation"):
        open_store(str(path), overwrite=False)
    open_store(str(path), overwrite=True).close()
    assert (tmp_path / "r.json.previous").read_text(encoding="utf-8") == '{"mine": 1}'


def test_overwrite_starts_again(tmp_path):
    path = tmp_path / "r.json"
    filled(answers_path(path)).close()
    write_results(path, {"seconds": 1})
    open_store(str(path), overwrite=False).close()
    store = open_store(str(path), overwrite=True)
    assert store.items == 0
    store.close()
    open_store(str(path), overwrite=True).close()  # nothing was evaluated in between
    assert "Rome" in (tmp_path / "r.answers.jsonl.previous").read_text(encoding="utf-8")
    assert (tmp_path / "r.json.previous").exists()


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"--out .*: cannot write there"):
        open_store(str(tmp_path / "file/r.json"), overwrite=False)


def test_a_full_disk_is_one_line_and_costs_no_finished_item(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    store = filled(path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"a.jsonl: cannot be written \(No space left on device\)"):
        store.task("answers", IDENTITY).add({"2": {"answer": "Paris"}})
    store.close()
    monkeypatch.undo()
    assert Store(path).items >= 2


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "deep").mkdir()
    assert sha256_of(tmp_path / "a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert sha256_of(tmp_path) == {"a": sha256_of_file(tmp_path / "a")}
