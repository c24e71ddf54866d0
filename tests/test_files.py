"""Reading files: only regular ones, never more than a limit, and JSON only if it is plain."""

import os
import socket

import pytest

from minimind_sft.errors import UserError
from minimind_sft.files import (
    open_regular,
    path_exists,
    peek_object,
    read_configuration,
    read_object,
    read_regular_file,
    read_text,
    refuse_lfs_pointer,
    sha256_of_file,
)

READERS = [open_regular, read_regular_file, sha256_of_file, read_text, read_object, read_configuration,
           refuse_lfs_pointer]


def a_pipe(path):
    os.mkfifo(path)
    return "a pipe, expected a file"


def a_socket(path):
    socket.socket(socket.AF_UNIX).bind(str(path))
    return "a socket, expected a file"


def a_folder(path):
    path.mkdir()
    return "a folder, expected a file"


def a_device(path):
    path.symlink_to("/dev/zero")
    return "a device, expected a file"


def a_system_file(path):
    path.symlink_to("/proc/self/status")
    return "one of the system's files, without a size; expected a regular file"


def nothing(path):
    return "cannot be read (No such file or directory)"


def a_dangling_link(path):
    path.symlink_to("absent")
    return "cannot be read (No such file or directory)"


def a_link_to_itself(path):
    path.symlink_to(path)
    return "cannot be read (Too many levels of symbolic links)"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("make", [a_pipe, a_socket, a_folder, a_device, a_system_file, nothing, a_dangling_link,
                                  a_link_to_itself])
def test_only_regular_files_are_opened(make, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    path = tmp_path / "a"
    expected = make(path.relative_to(tmp_path))
    if not path.exists() and make in (a_device, a_system_file):
        pytest.skip("this system has no such file")
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value) == f"{path}: {expected}"


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        open_regular(tmp_path / name)


def test_a_link_to_a_file_and_an_empty_file_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"one\r\ntwo")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "empty").touch()
    assert read_regular_file(tmp_path / "link") == b"one\r\ntwo"
    assert read_text(tmp_path / "link") == "one\ntwo"
    assert read_regular_file(tmp_path / "empty") == b""
    with open_regular(tmp_path / "a") as file:
        assert (file.read(2), file.read()) == (b"on", b"e\r\ntwo")


def test_a_limit_takes_no_memory(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_regular_file(tmp_path / "a", limit=2**62) == b"abc"


def test_a_file_larger_than_the_limit_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UserError, match=r"a: expected at most 4 bytes, found 5"):
        read_regular_file(tmp_path / "a", 4)
    with pytest.raises(UserError, match=r"a: expected at most 4 bytes, found 5"):
        read_text(tmp_path / "a", 4)


def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(tmp_path):
    pointer = tmp_path / "weights.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    for read in (refuse_lfs_pointer, read_text, read_object):
        with pytest.raises(UserError, match=r"weights\.pth: a Git LFS pointer.*run git lfs pull"):
            read(pointer)


def test_other_files_are_not_taken_for_lfs_pointers(tmp_path):
    (tmp_path / "short").write_bytes(b"version")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("short", "empty"):
        refuse_lfs_pointer(tmp_path / name)


def test_read_object_reads_one_json_object(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content, problem", [
    (b"[1]", "expected a JSON object, found a list"),
    (b"1", "expected a JSON object, found 1"),
    (b"[" * 100_000, "the JSON is nested too deeply"),
    (b"{", "expected a JSON object, found broken JSON at column 2: Expecting property name"),
    (b" ", "expected a JSON object, the file is empty"),
    (b"\xff", r"not valid UTF-8 \(byte 1\)"),
    (b'{"a": 1, "a": 1}', "a is there twice"),
])
def test_read_object_refuses_other_content(tmp_path, content, problem):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {problem}"):
        read_object(tmp_path / "a.json")
    assert peek_object(tmp_path / "a.json") == {}


def test_a_peek_finds_the_object_in_a_file_or_an_empty_one(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8")
    assert peek_object(tmp_path / "a.json") == {"a": 1}
    assert peek_object(tmp_path / "absent.json") == {}


def test_path_exists_names_a_path_that_cannot_be_looked_up(tmp_path):
    assert path_exists(tmp_path) and not path_exists(tmp_path / "a")
    with pytest.raises(UserError, match=r"aaa: cannot be read \(File name too long\)"):
        path_exists(tmp_path / ("a" * 300))
