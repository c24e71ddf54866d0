"""Writing files: whole or not at all, never through a link, and private folders that only their owner enters."""

import multiprocessing
import os
import signal
import stat

import pytest
from data_files import left_private_folder

from minimind_sft.errors import UserError
from minimind_sft.locks import FolderLock
from minimind_sft.writing import (
    MARKER,
    PrivateFolder,
    append_to,
    check_writable,
    create,
    create_text,
    cut,
    remove_leftovers,
    write_atomically,
    write_text_atomically,
    write_together,
)

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other locks and modes")


@pytest.fixture
def victim(tmp_path):
    """A file that somebody links to from where a program writes."""
    path = tmp_path / "victim"
    path.write_text("mine")
    (tmp_path / "a").symlink_to(path)
    yield path
    assert path.read_text() == "mine"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    for text in ("一\n", "two\r\n"):
        write_text_atomically(tmp_path / "a", text)
        assert (tmp_path / "a").read_bytes() == text.encode()
    assert names(tmp_path) == ["a"]


def test_new_content_is_written_under_its_own_name_in_a_private_folder(tmp_path):
    def write(path):
        assert path.name == "a" and path.parent.parent == tmp_path and path.parent.name != "a"
        if os.name != "nt":
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        create_text(path, "new")
        assert not (tmp_path / "a").exists()

    write_atomically(tmp_path / "a", write)
    assert names(tmp_path) == ["a"]


@posix
def test_a_new_file_has_the_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    write_text_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_replaced_and_not_followed(victim, tmp_path):
    write_text_atomically(tmp_path / "a", "new")
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_text() == "new"


def test_files_of_several_folders_are_written_together(tmp_path):
    (tmp_path / "x").mkdir()
    files = {tmp_path / "a": lambda to: create_text(to, "1"), tmp_path / "x" / "a": lambda to: create_text(to, "2")}
    write_together(files)
    assert [path.read_text() for path in files] == ["1", "2"] and names(tmp_path / "x") == ["a"]


def test_after_a_failure_the_old_files_are_there_and_no_others(tmp_path):
    (tmp_path / "a").write_text("old")

    def fails(path):
        create_text(path, "half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a: cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "a", fails)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@posix
@pytest.mark.parametrize("write", [lambda path: write_text_atomically(path, "x"), append_to, lambda path: cut(path, 0),
                                   lambda path: FolderLock(path).take()])
def test_only_files_are_written_to(write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to(os.devnull)
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder"), ("device", "a (device|link)")):
        with pytest.raises(UserError, match=f"{name}: {kind}, expected a file or nothing"):
            write(tmp_path / name)
    assert names(tmp_path) == ["device", "folder", "pipe"]


@posix
@pytest.mark.parametrize("write", [append_to, lambda path: cut(path, 0), lambda path: FolderLock(path).take()])
def test_nothing_is_written_through_a_link(write, victim, tmp_path):
    with pytest.raises(UserError, match="a: a link, expected a file or nothing"):
        write(tmp_path / "a")


def test_a_new_file_is_never_an_old_one(victim, tmp_path):
    for name in ("a", "victim"):
        with pytest.raises(FileExistsError):
            create(tmp_path / name)


def test_text_is_appended_and_cut(tmp_path):
    for text in ("one\n", "二\n"):
        with append_to(tmp_path / "a") as file:
            file.write(text)
    assert (tmp_path / "a").read_bytes() == "one\n二\n".encode()
    cut(tmp_path / "a", 4)
    assert (tmp_path / "a").read_bytes() == b"one\n"


def test_what_a_killed_process_left_is_removed_and_nothing_else(victim, tmp_path):
    kept = [".minimind_sft.tmp", ".minimind_sft.0123456789abcde.tmp", ".a.tmp", "minimind_sft.0123456789abcdef.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / MARKER).touch()
    unmarked = tmp_path / ".minimind_sft.0123456789abcdef.tmp"
    unmarked.mkdir()
    (unmarked / "a").write_text("mine")
    left = left_private_folder(tmp_path)
    (left / "inner").mkdir()
    (left / "inner" / "link").symlink_to(victim)
    (tmp_path / ".minimind_sft.1123456789abcdef.tmp").symlink_to(left)
    write_text_atomically(tmp_path / "b", "new")
    assert names(tmp_path) == sorted([*kept, unmarked.name, ".minimind_sft.1123456789abcdef.tmp", "a", "b", "victim"]
                                     if os.name != "nt" else names(tmp_path))
    assert (unmarked / "a").read_text() == "mine"


def test_a_private_folder_in_use_is_not_removed(tmp_path):
    with PrivateFolder(tmp_path) as private:
        create_text(private / "a", "half")
        write_text_atomically(tmp_path / "b", "whole")
        remove_leftovers(tmp_path)
        assert (private / "a").read_text() == "half"
    assert names(tmp_path) == ["b"]


@pytest.mark.skipif(FORK is None, reason="no fork")
def test_the_folder_of_a_killed_process_is_removed(tmp_path):
    def die():
        PrivateFolder(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    (left,) = names(tmp_path)
    assert left.startswith(".minimind_sft.")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@posix
def test_a_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(UserError, match=r"--save_dir .*udcff.*: expected a name in valid UTF-8"):
        check_writable(folder, "--save_dir")
    assert not folder.exists()


@posix
@pytest.mark.parametrize("content", [b"precious notes", b"{}", b'{"pid": 1, "host": "a", "since": 1e300}', b"[" * 4000,
                                     b'{"pid": 1, "host": "a", "since": 1.0, "more": 1}', b"\xff"])
def test_a_file_that_is_no_lock_is_not_overwritten(content, tmp_path):
    (tmp_path / "a.lock").write_bytes(content)
    lock = FolderLock(tmp_path / "a.lock")
    with pytest.raises(UserError, match=r"a\.lock: expected the lock of a run, found something else; move it away"):
        lock.take()
    assert (tmp_path / "a.lock").read_bytes() == content
    (tmp_path / "a.lock").unlink()
    lock.take()
    lock.release()


def test_the_file_of_an_earlier_lock_is_taken_over(tmp_path):
    first, second = FolderLock(tmp_path / "a.lock"), FolderLock(tmp_path / "a.lock")
    for lock in (first, second):
        lock.take()
        assert (tmp_path / "a.lock").read_text() == lock.holder
        lock.release()
    (tmp_path / "a.lock").write_bytes(b"\0" * 60)  # after a power cut
    assert first.try_take()
    first.release()


@posix
def test_a_folder_that_is_taken_for_one_that_was_left_is_made_again(tmp_path, monkeypatch):
    taken = []

    def create_late(path):
        if len(taken) < 2:  # another process looks before the marker is there, and before it is locked
            file = create(path) if taken else None
            taken.append(path.parent)
            remove_leftovers(tmp_path)
            if file is None:
                return create(path)
            return file
        return create(path)

    monkeypatch.setattr("minimind_sft.writing.create", create_late)
    with PrivateFolder(tmp_path) as private:
        assert len(taken) == 2 and private not in taken
        assert names(tmp_path) == [private.name]
