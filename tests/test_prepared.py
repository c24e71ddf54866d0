"""Samples are prepared once, the same in one process and in many, and never incompletely."""

import fcntl
import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from chats import BUNDLED, TOKENIZER
from programs import questions, wait_for, write_rows

from minimind_sft.data import prepared, workers
from minimind_sft.data.example import make_example
from minimind_sft.data.prepared import prepare
from minimind_sft.data.samples import EncodedRow, PretrainEncoder, SFTEncoder
from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.writing import MARKER

ENCODER = SFTEncoder(BUNDLED, 100)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes chunks so small that several processes share a few hundred rows."""
    monkeypatch.setattr(workers, "CHUNK_ROWS", 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})


def contents(dataset) -> list:
    return [[(example.input_ids.tolist(), example.labels.tolist()) for example in dataset[i]]
            for i in range(len(dataset))]


def folders(folder) -> list:
    return [path for path in folder.iterdir() if path.is_dir()]


def test_prepared_samples_equal_the_encoded_rows(tmp_path, small_chunks):
    data = write_rows(tmp_path / "a.jsonl", questions(300))
    dataset = prepare([data], ENCODER, tmp_path / "prepared")
    here = [row.samples[0] for row in ENCODER.encode([("", row) for row in questions(300)])]
    assert contents(dataset) == [[(one.input_ids.tolist(), one.labels.tolist()) for one in sample] for sample in here]
    assert dataset.counts.rows == len(dataset) == 300
    assert dataset.counts.supervised == sum(dataset.supervised(i) for i in range(300))
    assert multiprocessing.active_children() == []


def test_each_sample_knows_its_file_and_kind(tmp_path, small_chunks):
    """Also where a row has no samples or several, and beside rows that are skipped."""
    second = [{"text": "word " * 150, "kind": "long"}, {"text": "a b c"}, {"nothing": 1}, *questions(2)]
    files = [write_rows(tmp_path / name, rows)
             for name, rows in (("a.jsonl", questions(40)), ("a.jsonl:1.jsonl", second))]
    dataset = prepare(files, ENCODER, tmp_path / "prepared", "skip")
    found = [dataset.groups[dataset.group_of(index)] for index in range(len(dataset))]
    assert found[:3] == [(str(files[0]), "even"), (str(files[0]), "odd"), (str(files[0]), "even")]
    chunks = len(PretrainEncoder(TOKENIZER, 100).encode([("", second[0])])[0].samples)
    assert chunks > 1
    assert [(source, kind) for source, kind in found[40:]] == [
        (str(files[1]), kind) for kind in ["long"] * chunks + ["all", "even", "odd"]]
    chosen = dataset.select([41, 3])
    assert [chosen.groups[chosen.group_of(index)].kind for index in (0, 1)] == ["long", "odd"]


def test_a_file_that_was_renamed_is_a_source_by_its_new_name(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(3))
    prepare([data], ENCODER, tmp_path / "prepared")
    dataset = prepare([data.rename(tmp_path / "b.jsonl")], ENCODER, tmp_path / "prepared")
    assert {group.source for group in dataset.groups} == {str(tmp_path / "b.jsonl")}
    assert len(folders(tmp_path / "prepared")) == 1


def test_kinds_beyond_the_first_count_as_one(tmp_path, monkeypatch):
    """The field may be an id of each row."""
    monkeypatch.setattr(prepared, "MAX_KINDS", 3)
    rows = [{**row, "kind": kind} for row, kind in zip(questions(6), ["x" * 200, 7, None, "d", "e", 7], strict=True)]
    dataset = prepare([write_rows(tmp_path / "a.jsonl", rows)], ENCODER, tmp_path / "prepared")
    assert [dataset.groups[dataset.group_of(index)].kind for index in range(6)] == [
        "x" * 80, "7", "all", "(other kinds)", "(other kinds)", "7"]


def test_several_processes_make_the_same_files_as_one(tmp_path, small_chunks, monkeypatch):
    data = write_rows(tmp_path / "a.jsonl", questions(300))
    many = prepare([data], ENCODER, tmp_path / "many").folder
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    one = prepare([data], ENCODER, tmp_path / "one").folder
    assert many.name == one.name
    for path in one.iterdir():
        assert path.read_bytes() == (many / path.name).read_bytes(), path.name


def test_prepared_data_are_used_again(tmp_path, monkeypatch):
    data = write_rows(tmp_path / "a.jsonl", questions(5))
    first = prepare([data], ENCODER, tmp_path / "prepared")
    monkeypatch.setattr(prepared, "_write", None)
    second = prepare([data.rename(tmp_path / "b.jsonl")], ENCODER, tmp_path / "prepared")
    assert contents(second) == contents(first) and second.counts == first.counts
    assert second.fingerprint == first.fingerprint


def test_other_data_or_settings_are_prepared_separately(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(5))
    made = [prepare([data], ENCODER, tmp_path / "prepared").folder]
    made.append(prepare([data], SFTEncoder(BUNDLED, 90), tmp_path / "prepared").folder)
    made.append(prepare([data, data], ENCODER, tmp_path / "prepared").folder)
    write_rows(data, questions(6))
    made.append(prepare([data], ENCODER, tmp_path / "prepared").folder)
    assert len(set(made)) == 4 == len(folders(tmp_path / "prepared"))


def test_large_token_ids_and_unsupervised_positions_are_preserved(tmp_path):
    class Rows:
        tokenizer = type("", (), {"vocab_size": 200_000})
        settings = {"max_seq_len": 9}  # noqa: RUF012

        def encode(self, rows):
            return [EncodedRow([[make_example([70_000, 199_999, 5], [True, False, True])]], False, "") for _ in rows]

    dataset = prepare([write_rows(tmp_path / "a.jsonl", questions(1))], Rows(), tmp_path / "prepared")
    assert contents(dataset) == [[([70_000, 199_999], [-100, 5])]]
    assert dataset[0][0].labels.dtype == dataset[0][0].input_ids.dtype == np.int32


BAD = [*questions(3), {"conversations": []}, {"messages": 5}, *questions(2)]


def test_bad_rows_are_an_error_or_skipped_and_counted(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", BAD)
    for _ in range(2):  # also if the other rows have been prepared already
        with pytest.raises(UserError) as error:
            prepare([data], ENCODER, tmp_path / "prepared")
        assert str(error.value).splitlines() == [
            f"{data}:4: conversations: expected a list of turns, found an empty list",
            f"       {data}:5: messages: expected a list of turns, found 5",
            "       scripts/inspect_data.py lists all, --bad_rows skip leaves them out"]
        skipped = prepare([data], ENCODER, tmp_path / "prepared", bad_rows="skip")
        assert len(skipped) == 5 and skipped.counts.bad_rows == 2


def test_a_single_bad_row_is_reported_in_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        prepare([write_rows(tmp_path / "a.jsonl", BAD[:4])], ENCODER, tmp_path / "prepared")
    assert str(error.value) == f"{tmp_path / 'a.jsonl'}:4: conversations: expected a list of turns, found an empty " \
                               "list (--bad_rows skip leaves the row out)"


def test_only_the_first_of_many_bad_rows_are_named(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{}] * 25)
    with pytest.raises(UserError) as error:
        prepare([data], ENCODER, tmp_path / "prepared")
    lines = str(error.value).splitlines()
    assert len(lines) == 11 and lines[-1].strip().startswith("and 15 more bad rows; ")
    assert folders(tmp_path / "prepared") == []


def test_a_file_without_usable_samples_is_an_error(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(3))
    with pytest.raises(UserError, match=r"a\.jsonl: no row of 3 keeps a supervised token within --max_seq_len 5: all "
                                        r"are empty, too long or flagged as not learned; the first: .*a\.jsonl:1$"):
        prepare([data], SFTEncoder(BUNDLED, 5), tmp_path / "prepared")
    data.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl: the file has no rows$"):
        prepare([data], PretrainEncoder(TOKENIZER, 5), tmp_path / "prepared")


def test_an_unwritable_folder_is_named(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(3))
    with pytest.raises(UserError, match=r"a\.jsonl: the prepared data cannot be kept there .*; --prepared_dir names"):
        prepare([data], ENCODER, data)


class SlowEncoder(SFTEncoder):
    """Appends to the file `began` at its start, then waits for the file `go`."""

    def encode(self, rows):
        self.began.open("a").write("x")
        wait_for(self.go.exists)
        return super().encode(rows)


def slow_rows(tmp_path) -> SlowEncoder:
    rows = SlowEncoder(BUNDLED, 100)
    rows.began, rows.go = tmp_path / "began", tmp_path / "go"
    return rows


def test_a_second_process_waits_for_the_first_to_prepare(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(5))
    rows, said = slow_rows(tmp_path), []

    def say(line: str) -> None:
        said.append(line)
        rows.go.touch()

    other = FORK.Process(target=prepare, args=([data], rows, tmp_path / "prepared"))
    other.start()
    wait_for(rows.began.exists)
    dataset = prepare([data], rows, tmp_path / "prepared", say=say)
    other.join()
    assert other.exitcode == 0 and len(dataset) == 5
    assert rows.began.read_text() == "x"
    assert len(said) == 1 and said[0].startswith("waiting     another process prepares the same data") \
        and f"(process {other.pid} on " in said[0]


def is_free(folder: Path) -> bool:
    """Whether no process holds the marker of a private folder."""
    with (folder / MARKER).open("rb+") as marker, suppress(BlockingIOError):
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_preparation_leaves_no_data_and_no_process(tmp_path, small_chunks, signum):
    data = write_rows(tmp_path / "a.jsonl", questions(300))
    rows = slow_rows(tmp_path)
    other = FORK.Process(target=prepare, args=([data], rows, tmp_path / "prepared"))
    other.start()
    wait_for(rows.began.exists)
    os.kill(other.pid, signum)
    other.join()
    rows.go.touch()
    left = [path for path in folders(tmp_path / "prepared") if path.name.startswith(".")]
    wait_for(lambda: all(map(is_free, left)))  # its workers end, and with them their copies of its lock
    assert len(rows.began.read_text()) <= 3, "its workers continue without it"
    assert folders(tmp_path / "prepared") == left
    dataset = prepare([data], ENCODER, tmp_path / "prepared")
    assert len(dataset) == 300
    assert folders(tmp_path / "prepared") == [dataset.folder]


def test_a_worker_that_dies_is_reported_and_leaves_nothing(tmp_path, small_chunks):
    class Deadly(SFTEncoder):
        def encode(self, rows):
            if any(place.endswith(":200") for place, _ in rows):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(rows)

    data = write_rows(tmp_path / "a.jsonl", questions(300))
    with pytest.raises(ProcessLost, match="a process that prepares the data died"):
        prepare([data], Deadly(BUNDLED, 100), tmp_path / "prepared")
    assert folders(tmp_path / "prepared") == [] and multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_in_the_caller(tmp_path, small_chunks):
    class Wrong(SFTEncoder):
        def encode(self, rows):
            raise ZeroDivisionError

    data = write_rows(tmp_path / "a.jsonl", questions(300))
    with pytest.raises(ZeroDivisionError):
        prepare([data], Wrong(BUNDLED, 100), tmp_path / "prepared")


@pytest.mark.parametrize("part", ["header.json", "manifest.json", "input_ids.bin", "labels.bin", "lengths.bin",
                                  "examples.bin", "groups.bin"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_damaged_prepared_data_are_prepared_again(tmp_path, part, damage):
    data, said = write_rows(tmp_path / "a.jsonl", questions(5)), []
    first = prepare([data], ENCODER, tmp_path / "prepared")
    before = contents(first)
    path = first.folder / part
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 4)
    else:
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert contents(prepare([data], ENCODER, tmp_path / "prepared", say=said.append)) == before
    assert len(said) == 1 and said[0].startswith(f"prepared    {first.folder} is prepared again: ") and part in said[0]
    assert folders(tmp_path / "prepared") == [first.folder]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(5))
    os.utime(data, (1, 1))  # clocks of files are coarse: the change might come in the same tick

    class Meanwhile(SFTEncoder):
        def encode(self, rows):
            write_rows(data, questions(6)[1:])
            return super().encode(rows)

    with pytest.raises(UserError, match=r"a\.jsonl: the file changed while it was read; start again"):
        prepare([data], Meanwhile(BUNDLED, 100), tmp_path / "prepared")
    assert folders(tmp_path / "prepared") == []


def test_messages_name_the_current_name_of_the_file(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", BAD)
    prepare([data], ENCODER, tmp_path / "prepared", bad_rows="skip")
    again = prepare([data.rename(tmp_path / "b.jsonl")], ENCODER, tmp_path / "prepared", bad_rows="skip")
    assert again.counts.bad[0].startswith(f"{tmp_path / 'b.jsonl'}:4: ")


def test_folders_that_other_programs_made_are_kept(tmp_path):
    """Also those whose names look like those of unfinished preparations."""
    folder = tmp_path / "prepared"
    theirs = [folder / name for name in (".cache.tmp", f".{'a0' * 16}.tmp", f".minimind_sft.{'b0' * 8}.tmp")]
    for path in theirs:
        path.mkdir(parents=True)
        (path / "precious").touch()
    dataset = prepare([write_rows(tmp_path / "a.jsonl", questions(5))], ENCODER, folder)
    assert sorted(folders(folder)) == sorted([*theirs, dataset.folder])
    assert all((path / "precious").exists() for path in theirs)


def test_foreign_files_in_the_folder_are_named_and_kept(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(5))
    folder = prepare([data], ENCODER, tmp_path / "prepared").folder
    (folder / "header.json").unlink()
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match=rf"{folder}: notes\.txt in it was not put there by this program; move it away"):
        prepare([data], ENCODER, tmp_path / "prepared")
    assert (folder / "notes.txt").exists()
    (folder / "notes.txt").unlink()
    assert len(prepare([data], ENCODER, tmp_path / "prepared")) == 5


def test_an_empty_file_among_others_is_an_error(tmp_path):
    empty = tmp_path / "b.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.jsonl: the file has no rows"):
        prepare([write_rows(tmp_path / "a.jsonl", questions(5)), empty], ENCODER, tmp_path / "prepared")


def test_unreadable_files_are_reported_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        prepare([tmp_path / "none.jsonl"], ENCODER, tmp_path / "prepared")


def test_a_file_of_only_bad_rows_is_an_error_even_with_skip(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: none of 2 rows can be used; the first: .*a\.jsonl:1: "):
        prepare([write_rows(tmp_path / "a.jsonl", [{}, {}])], ENCODER, tmp_path / "prepared", bad_rows="skip")


def test_order_and_kind_of_the_files_change_the_folder(tmp_path):
    a, b = (write_rows(tmp_path / f"{name}.jsonl", questions(count)) for name, count in (("a", 3), ("b", 4)))
    same = tmp_path / "a.ndjson"
    same.write_bytes(a.read_bytes())
    made = [prepare(files, ENCODER, tmp_path / "prepared").folder.name for files in ([a, b], [b, a], [a], [same])]
    assert len(set(made)) == 4
