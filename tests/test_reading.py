"""Data files are found and read; every problem is reported on one line."""

import pytest
from data_files import rows_or_errors, write

from minimind_sft.data import json_objects, reading
from minimind_sft.data.reading import read_rows, read_texts
from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError


def test_rows_have_their_places_and_blank_lines_are_skipped(tmp_path):
    file = write(tmp_path / "a.jsonl", '\ufeff{"text": "一"}\r\n\n  \n{"text": "\u2028"}'.encode())
    assert list(read_rows(file)) == [(f"{file}:1", {"text": "一"}), (f"{file}:4", {"text": "\u2028"})]


@pytest.mark.parametrize("data, message", [
    (b"", ": the file has no rows"),
    (b"\n \n", ": the file has no rows"),
    (b'{"a": 1}\n{"a": }', ":2: expected one JSON object per row, found broken JSON at column 7: Expecting value"),
    (b'[1]', ":1: expected one JSON object per row, found 1"),
    (b'[1]\n[2]', ":1: expected one JSON object per row, found a list"),
    (b'"hello"', ':1: expected one JSON object per row, found "hello"'),
    (b'{"a": 1}\n\n{"a": "\xe4\xb8"}', ":3: not valid UTF-8: byte 8 of the row is 0xe4"),
    (b'{"a": "\\ud83d!"}', r":1: a string holds \ud83d, half of a surrogate pair, which is not a character"),
    (b'{"a": "\\uDE00"}', r":1: a string holds \ude00, half of a surrogate pair, which is not a character"),
    (b'{"a": ' + b"[" * 100_000, ":1: the JSON is nested too deeply"),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", ":1: the JSON is nested too deeply"),
])
def test_a_bad_file_is_reported_in_one_line(tmp_path, data, message):
    file = write(tmp_path / "a.jsonl", data)
    with pytest.raises(UserError) as error:
        list(read_rows(file))
    assert str(error.value).startswith(f"{file}{message}")
    assert "\n" not in str(error.value)


def test_an_integer_larger_than_any_float_is_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": ' + b"9" * 5000 + b"}")
    with pytest.raises(UserError, match=r"a\.jsonl:1: 9{40}\.\.\. is too large a number"):
        list(read_rows(file))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"folder\.jsonl: a folder, expected a file"):
        list(read_rows(tmp_path / "folder.jsonl"))


def test_a_hundred_levels_of_nesting_are_read(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}")
    assert len(list(read_rows(file))) == 1


def test_a_whole_surrogate_pair_is_one_character(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00"}')
    assert next(read_rows(file))[1] == {"a": "😀"}


def test_read_texts_finds_all_strings_in_every_kind_of_file(tmp_path):
    nested = b'{"key": ["one", {"other": "two"}, 3, null], "text": "three"}'
    assert list(read_texts(write(tmp_path / "a.jsonl", nested + b"\n\n" + nested))) == ["one", "two", "three"] * 2
    assert list(read_texts(write(tmp_path / "a.json", b"[\n" + nested + b"\n]"))) == ["one", "two", "three"]
    assert list(read_texts(write(tmp_path / "a.txt", "一\r\n\n二".encode()))) == ["一\r\n", "\n", "二"]


def test_read_texts_refuses_broken_files(tmp_path):
    with pytest.raises(UserError, match=r"a\.json:2: the file ends in the middle of this row"):
        list(read_texts(write(tmp_path / "a.json", b"[\n")))
    with pytest.raises(UserError, match=r"a\.txt:2: not valid UTF-8: byte 1"):
        list(read_texts(write(tmp_path / "a.txt", b"a\n\xff")))
    with pytest.raises(UserError, match=r"a\.doc: expected a file named \*\.jsonl, \*\.ndjson, .* \(also with \.gz, "):
        list(read_texts(write(tmp_path / "a.doc", b"a")))
    for name in ("a.txt", "a.jsonl"):
        with pytest.raises(UserError, match=rf"{name}: the file has no rows$"):
            list(read_texts(write(tmp_path / name, b"")))


def test_one_bad_line_does_not_hide_the_next(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": NaN}\n{"a": "\xff"}\n{"a": 2}\r\n{"a": -Infinity}\n{"a": "tor')
    assert rows_or_errors(file) == [
        {"a": 1},
        "2: NaN is not a number in JSON",
        "3: not valid UTF-8: byte 8 of the row is 0xff",
        {"a": 2},
        "5: -Infinity is not a number in JSON",
        "6: expected one JSON object per row, found broken JSON at column 7: Unterminated string starting at "
        "(the row has no end: was the file cut off?)",
    ]


def test_names_and_globs_give_each_file_once_in_order(tmp_path):
    b, a, other = (write(tmp_path / name, b"{}") for name in ("b.jsonl", "a.jsonl", "c.json"))
    assert find_files([b, tmp_path / "*.jsonl", other]) == [b, a, other]
    for pattern, message in (("*.parquet", "no file matches it"), ("d.jsonl", "no such file"),
                             ("", "expected a file, found a folder")):
        with pytest.raises(UserError, match=message):
            find_files([tmp_path / pattern])
    odd = write(tmp_path / "e[1].jsonl", b"{}")
    assert find_files([odd]) == [odd]


def test_numbers_that_no_float_can_hold_are_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": 1e999}\n{"a": 1e30}\n')
    assert rows_or_errors(file) == ["1: 1e999 is too large a number", {"a": 1e30}]


def test_a_folder_is_refused_with_a_pattern_for_its_files(tmp_path):
    folder = "expected a file, found a folder"
    with pytest.raises(UserError) as empty:
        find_files([tmp_path])
    assert str(empty.value) == f"{tmp_path}: {folder} ({tmp_path}/*.jsonl names the files in it)"
    (tmp_path / "data").mkdir()
    write(tmp_path / "info.json", b"{}")
    write(tmp_path / "data" / "train.parquet", b"x" * 100)
    with pytest.raises(UserError) as repository:
        find_files([tmp_path])
    assert str(repository.value) == f"{tmp_path}: {folder} ({tmp_path}/data/*.parquet names the files in it)"


def test_rows_written_as_python_literals_are_refused_with_a_hint(tmp_path):
    assert rows_or_errors(write(tmp_path / "a.jsonl", b"{'a': 1}\n{\"a\": 1, b: 2}")) == [
        "1: expected one JSON object per row, found broken JSON at column 2: Expecting property name enclosed in "
        "double quotes; is it a Python literal? json.dumps writes JSON",
        "2: expected one JSON object per row, found broken JSON at column 10: Expecting property name enclosed in "
        "double quotes"]


def test_a_row_with_a_million_values_is_an_error_at_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW_VALUES", 100)
    monkeypatch.setattr(json_objects, "MAX_ROW_VALUES", 100)
    many = b'{"a": [' + b"[]," * 200 + b"[]]}\n"
    file = write(tmp_path / "a.jsonl", many + b'{"a": "' + b"," * 200 + b'"}\n' + many)
    refused = "expected at most 100 values in the JSON"
    assert rows_or_errors(file) == [f"1: {refused}", {"a": "," * 200}, f"3: {refused}"]
    many = b"[" + many.strip() + b', {"a": 1}]'
    assert rows_or_errors(write(tmp_path / "b.json", many)) == [f"1: {refused}", {"a": 1}]
