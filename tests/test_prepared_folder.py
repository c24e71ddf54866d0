"""Prepared samples are used only as they were made, and nothing that others have made is removed for them."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from chats import BUNDLED
from programs import questions, write_rows

from minimind_sft.data.overlap import count_shared
from minimind_sft.data.prepared import prepare
from minimind_sft.data.prepared_folder import MARKER, PreparedDataset, refuse_foreign, remove_folder
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.stored_tokens import StoredTokens
from minimind_sft.errors import UserError
from minimind_sft.files import sha256_of_file
from minimind_sft.manifest import Damaged

ENCODER = SFTEncoder(BUNDLED, 100)
VOCAB = BUNDLED.tokenizer.vocab_size


@pytest.fixture
def made(tmp_path) -> PreparedDataset:
    return prepare([write_rows(tmp_path / "a.jsonl", questions(5))], ENCODER, tmp_path / "prepared")


def change(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and its checksum in the manifest, as a forger would."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {name: sha256_of_file(folder / name)}),
                                          encoding="utf-8")


def damage(made: PreparedDataset) -> str:
    with pytest.raises(Damaged) as refused:
        PreparedDataset(made.folder, [made.folder.parent.parent / "a.jsonl"], VOCAB)
    return str(refused.value)


@pytest.mark.parametrize(("name", "edit", "message"), [
    ("input_ids.bin", lambda ids: np.full_like(ids, VOCAB), f"token ids beyond the vocabulary of {VOCAB:,}"),
    ("labels.bin", lambda labels: np.full_like(labels, VOCAB), f"token ids beyond the vocabulary of {VOCAB:,}"),
    ("labels.bin", lambda labels: np.full_like(labels, 2**16 - 1), "labels.bin: 0 tokens are supervised, not "),
    ("labels.bin", lambda labels: labels[:-1], "the parts have the wrong lengths"),
    ("lengths.bin", lambda lengths: -lengths, "the parts have the wrong lengths"),
    ("lengths.bin", lambda lengths: np.concatenate([lengths, [0]]), "the parts have the wrong lengths"),
    ("examples.bin", lambda examples: examples[:0], "the parts have the wrong lengths"),
    ("groups.bin", lambda groups: groups + 9, "groups.bin: names groups that there are not"),
    ("groups.bin", lambda groups: groups - 1, "groups.bin: names groups that there are not"),
])
def test_parts_that_do_not_fit_together_are_refused(made, name, edit, message):
    path = made.folder / name
    numbers = np.fromfile(path, np.uint16 if name in ("input_ids.bin", "labels.bin") else np.int32)
    change(made.folder, name, edit(numbers).astype(numbers.dtype).tobytes())
    assert message in damage(made)


@pytest.mark.parametrize(("path", "value"), [
    (("counts",), None), (("counts", "tokens"), "9"), (("counts", "rows"), True), (("counts", "bad"), [1]),
    (("counts", "other"), 1), (("paths",), []), (("paths",), [1]), (("groups",), [[9, "x"]]),
    (("groups",), [["0", "x"]]), (("groups",), [[0, 1]]),
    (("groups",), 3), (("content",), None), (("content", "files"), [["0" * 64, "jsonl"]])])
def test_headers_of_other_types_or_data_are_refused(made, path, value):
    header = json.loads((made.folder / "header.json").read_text(encoding="utf-8"))
    place = header
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    change(made.folder, "header.json", json.dumps(header).encode())
    assert "header.json: " in damage(made)


def test_a_folder_under_the_name_of_another_is_refused(tmp_path, made):
    other = prepare([write_rows(tmp_path / "a.jsonl", questions(7))], ENCODER, tmp_path / "prepared")
    for path in made.folder.iterdir():
        (other.folder / path.name).write_bytes(path.read_bytes())
    assert damage(other) == "header.json: describes other data"


@pytest.mark.parametrize("edit", [
    lambda path: os.truncate(path, 10), lambda path: path.write_bytes(path.read_bytes()[::-1]),
    lambda path: path.open("ab").write(b"\0\0")])
def test_a_change_while_the_samples_are_used_is_one_line(made, edit):
    path = made.folder / "labels.bin"
    os.utime(path, ns=(0, 0))
    dataset = PreparedDataset(made.folder, [made.folder.parent.parent / "a.jsonl"], VOCAB)
    assert len(dataset[4]) == 1
    edit(path)
    with pytest.raises(UserError, match=r"labels\.bin: was changed by another program; start again"):
        dataset[4]
    with pytest.raises(UserError, match=r"labels\.bin: was changed by another program"):
        dataset.label_counts(VOCAB)


def test_a_touched_file_is_as_it_was(tmp_path):
    path, content = tmp_path / "x.bin", np.arange(100, dtype=np.uint16)
    content.tofile(path)
    stored = StoredTokens(path, content.dtype)
    stored.sha256 = sha256_of_file(path)
    os.utime(path, (1, 1))
    np.testing.assert_array_equal(stored[10:20], content[10:20])
    content[::-1].tofile(path)
    with pytest.raises(UserError, match=r"x\.bin: was changed by another program"):
        stored[10:20]


def test_a_worker_process_reads_the_same_file_or_none(tmp_path, made):
    sent = pickle.dumps(made)
    again = pickle.loads(sent)
    assert [one.input_ids.tolist() for one in again[3]] == [one.input_ids.tolist() for one in made[3]]
    path = made.folder / "input_ids.bin"
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, (1, 1))  # clocks of files are coarse: the change might have come in the tick of the writing
    with pytest.raises(UserError, match=r"input_ids\.bin: was changed by another program"):
        pickle.loads(sent)


def test_slices_are_those_of_an_array_on_every_system(tmp_path, monkeypatch):
    numbers = np.random.default_rng(0).integers(0, 2**16, 1000, dtype=np.uint16)
    (tmp_path / "x.bin").write_bytes(numbers.tobytes())
    for has_pread in {hasattr(os, "pread"), False}:
        monkeypatch.setattr("minimind_sft.data.stored_tokens.HAS_PREAD", has_pread)
        stored = StoredTokens(tmp_path / "x.bin", np.dtype(np.uint16))
        assert len(stored) == 1000
        for where in (slice(0, 10), slice(990, 2000), slice(5, 5), slice(None), slice(400, 300)):
            assert np.array_equal(stored[where], numbers[where])


def test_equal_samples_are_found_wherever_they_lie_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("minimind_sft.data.overlap.BLOCK", 64)
    train, other = (prepare([write_rows(tmp_path / f"{name}.jsonl", rows)], ENCODER, tmp_path / "prepared")
                    for name, rows in (("a", questions(50)), ("b", questions(60)[45:])))
    assert count_shared(train, other) == 5
    assert count_shared(train.select([49, 3, 46]), other.select([4, 1, 0])) == 2
    assert count_shared(train.select([]), other) == 0


def entry(folder: Path, what: str) -> None:
    """Puts something into a folder that a preparation does not make."""
    path = folder / "header.json"
    if what == "a folder":
        path.mkdir()
        (path / "precious").touch()
    elif what == "a link":
        path.symlink_to(folder.parent / "precious")
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "no marker":
        path.touch()
        (folder / MARKER).unlink()
    else:
        (folder / "notes.txt").touch()


@pytest.mark.parametrize("what", ["a folder", "a link", "a pipe", "no marker", "notes"])
def test_nothing_that_others_made_is_removed(tmp_path, what):
    if what == "a pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    folder = tmp_path / ("ab" * 16)
    folder.mkdir()
    (folder / MARKER).touch()
    entry(folder, what)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(UserError, match="; move it away"):
        refuse_foreign(folder)
    remove_folder(folder)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_link_or_a_file_in_the_place_of_the_folder_is_named_and_kept(tmp_path, made):
    name = made.folder
    name.rename(tmp_path / "elsewhere")
    for make in (lambda: name.symlink_to(tmp_path / "elsewhere"), name.touch):
        make()
        with pytest.raises(UserError, match="expected a folder of prepared data, found something else; move it away"):
            prepare([tmp_path / "a.jsonl"], ENCODER, tmp_path / "prepared")
        name.unlink()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 8
