"""Reading text and JSON objects, and files that are not what they seem."""

import pytest

from minimind_sft.errors import UserError
from minimind_sft.files import peek_object, read_object, refuse_lfs_pointer


def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(tmp_path):
    pointer = tmp_path / "weights.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(UserError, match=r"weights\.pth: a Git LFS pointer.*run git lfs pull"):
        refuse_lfs_pointer(pointer)


def test_other_files_are_not_taken_for_lfs_pointers(tmp_path):
    (tmp_path / "short").write_bytes(b"version")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("short", "empty", "absent"):
        refuse_lfs_pointer(tmp_path / name)


def test_read_object_reads_one_json_object(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content, problem", [
    (b"[1]", "expected a JSON object, found a list"),
    (b"1", "expected a JSON object, found 1"),
    (b"[" * 100_000, "the JSON is nested too deeply"),
    (b"{", "Expecting property name"),
    (b"\xff", "can't decode byte 0xff"),
])
def test_read_object_raises_value_error_for_other_content(tmp_path, content, problem):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_object(tmp_path / "a.json")
    assert peek_object(tmp_path / "a.json") == {}


def test_a_peek_finds_the_object_in_a_file_or_an_empty_one(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8")
    assert peek_object(tmp_path / "a.json") == {"a": 1}
    assert peek_object(tmp_path / "absent.json") == {}
