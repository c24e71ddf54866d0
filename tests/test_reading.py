import pytest

from minimind_sft.data.reading import read_rows, read_texts
from minimind_sft.errors import UserError


def write(path, data: bytes):
    path.write_bytes(data)
    return path


def test_rows_come_with_their_places_and_blank_lines_are_no_rows(tmp_path):
    file = write(tmp_path / "a.jsonl", '\ufeff{"text": "一"}\r\n\n  \n{"text": "\u2028"}'.encode())
    assert list(read_rows(file)) == [(f"{file}:1", {"text": "一"}), (f"{file}:4", {"text": "\u2028"})]


@pytest.mark.parametrize("data, message", [
    (b"", ": the file has no rows"),
    (b"\n \n", ": the file has no rows"),
    (b'{"a": 1}\n{"a": }', ":2: expected one JSON object per line, found broken JSON at column 7: Expecting value"),
    (b'[\n{"a": 1}\n]', ":1: expected one JSON object per line, found broken JSON at column 2: Expecting value"),
    (b'[1]', ":1: expected one JSON object per line, found a list"),
    (b'"hello"', ':1: expected one JSON object per line, found "hello"'),
    (b'{"a": 1}\n\n{"a": "\xe4\xb8"}', ":3: not valid UTF-8: byte 8 of the line is 0xe4"),
    (b'{"a": "\\ud83d!"}', r":1: a string holds \ud83d, half of a surrogate pair, which is no character"),
    (b'{"a": "\\uDE00"}', r":1: a string holds \ude00, half of a surrogate pair, which is no character"),
    (b"[" * 100_000, ":1: the JSON is nested too deeply"),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", ":1: the JSON is nested too deeply"),
])
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, data, message):
    file = write(tmp_path / "a.jsonl", data)
    with pytest.raises(UserError) as error:
        list(read_rows(file))
    assert str(error.value).startswith(f"{file}{message}")
    assert "\n" not in str(error.value)


def test_an_integer_too_long_for_python_is_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": ' + b"9" * 5000 + b"}")
    with pytest.raises(UserError, match=r"a\.jsonl:1: Exceeds the limit"):
        list(read_rows(file))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        list(read_rows(tmp_path))


def test_a_hundred_levels_are_not_too_deep(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}")
    assert len(list(read_rows(file))) == 1


def test_a_whole_surrogate_pair_is_one_character(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00"}')
    assert next(read_rows(file))[1] == {"a": "😀"}


def test_texts_of_every_kind_of_file(tmp_path):
    nested = b'{"key": ["one", {"other": "two"}, 3, null], "text": "three"}'
    assert list(read_texts(write(tmp_path / "a.jsonl", nested + b"\n\n" + nested))) == ["one", "two", "three"] * 2
    assert list(read_texts(write(tmp_path / "a.json", b"[\n" + nested + b"\n]"))) == ["one", "two", "three"]
    assert list(read_texts(write(tmp_path / "a.txt", "一\r\n\n二".encode()))) == ["一\r\n", "\n", "二"]


def test_texts_of_broken_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: expected one JSON value, found broken JSON at line 2, column 1"):
        list(read_texts(write(tmp_path / "a.json", b"[\n")))
    with pytest.raises(UserError, match=r"a\.txt:2: not valid UTF-8: byte 1"):
        list(read_texts(write(tmp_path / "a.txt", b"a\n\xff")))
    with pytest.raises(UserError, match=r"a\.csv: expected a file named \*\.jsonl, \*\.json or \*\.txt"):
        list(read_texts(write(tmp_path / "a.csv", b"a")))
