"""Reading the rows of a JSON array, alone in its file or under a key of an object."""

import json

import pytest
from data_files import jsonl, places, rows_or_errors, write

from minimind_sft.data import json_arrays
from minimind_sft.data.formats import ANSWERS, FORMS, QUESTIONS
from minimind_sft.errors import UserError

ARRAY = [{"a": "[,]{}\\\"", "b": [1, {"c": "\\"}]}, {"text": "中"}, {}]


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_rows_of_an_array_equal_those_of_the_json_module(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(json_arrays, "BLOCK_BYTES", block)
    text = json.dumps(ARRAY, ensure_ascii=False, indent=indent)
    file = write(tmp_path / "a.json", b"\xef\xbb\xbf \n" * (block > 2) + text.encode())
    assert rows_or_errors(file) == ARRAY


def test_each_bad_row_of_an_array_is_an_error_with_its_line(tmp_path):
    file = write(tmp_path / "a.json", b'[\n {"a": 1},\n {"a": },\n\n {"a":\n 2}, 3,\n {"a": "\n"},\n]\nx')
    expected = "expected one JSON object per row, found"
    assert places(file) == ["2", "3", "5", "6", "7", "9", "10"]
    assert rows_or_errors(file) == [
        {"a": 1}, f"3: {expected} broken JSON at column 7: Expecting value", {"a": 2}, f"6: {expected} 3",
        f"7: {expected} broken JSON at column 8: Invalid control character at",
        f"9: {expected} broken JSON at column 1: Expecting value", "10: expected nothing after the array"]


@pytest.mark.parametrize("text, said", [
    (b'[{"a": 1}, {"a": 2', [{"a": 1}, "1 (row 2): the file ends in the middle of this row"]),
    (b'[{"a": 1},\n', [{"a": 1}, "2: the file ends in the middle of this row"]),
    (b'[{"a": 1}', ["1: the file ends in the middle of this row"]),
    (b"[]", []),
    (b"[ \n]", []),
    (b'{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
])
def test_truncated_and_empty_arrays(tmp_path, text, said):
    assert rows_or_errors(write(tmp_path / "a.json", text)) == said


def test_rows_on_one_line_are_numbered(tmp_path):
    file = write(tmp_path / "a.json", b'[{"a": 1}, 2, {"a": 3},\n4, 5]')
    assert places(file) == [
        "1", "1 (row 2)", "1 (row 3)", "2", "2 (row 5)"]


@pytest.mark.parametrize("text", [b'[{"a": "%s"}]', b'[[%s]]'])
def test_an_overlong_row_of_an_array_is_an_error_after_a_limit(tmp_path, monkeypatch, text):
    monkeypatch.setattr(json_arrays, "MAX_ROW_BYTES", 2**20)
    monkeypatch.setattr(json_arrays, "BLOCK_BYTES", 2**16)
    file = write(tmp_path / "a.json", text % (b"[1], " * 300_000))
    with pytest.raises(UserError, match=r"a\.json:1: expected at most 1 MiB in a row of the array"):
        rows_or_errors(file)


def test_the_end_of_an_array_is_checked(tmp_path):
    assert rows_or_errors(write(tmp_path / "a.json", b'[{"a": 1}]{"b": 2}')) == [
        {"a": 1}, "1 (row 2): expected nothing after the array"]
    assert rows_or_errors(write(tmp_path / "a.json", b"[]]")) == ["1: expected nothing after the array"]
    with pytest.raises(UserError, match=r"a\.json:1: expected , or \] after a row of the array, found \}"):
        rows_or_errors(write(tmp_path / "a.json", b'[{"a": 1}}'))


ROWS = [{"messages": [{"role": "user", "content": "你好 } ] \\ \""}, {"role": "assistant", "content": "{["}]},
        {"text": "二"}, {"messages": []}]
SUFFIXES = (".jsonl", ".ndjson", ".json")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("before, after", [
    ('{"data": ', "}"), ('{\n  "train": ', "\n}\n"), ('{"conversations_list": ', "}"),
    ('{"version": "1.0", "n": [1, 2], "info": {"a": {}}, "rows": ', ', "license": {"x": []}, "tags": []}'),
])
def test_rows_inside_one_key_of_an_object_are_read(tmp_path, suffix, before, after):
    for indent in (None, 1):
        text = before + json.dumps(ROWS, ensure_ascii=False, indent=indent) + after
        assert rows_or_errors(write(tmp_path / f"a{suffix}", text.encode())) == ROWS, text
    assert places(tmp_path / f"a{suffix}")[0] == str(2 + before.count("\n"))


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": "a"}], "id": 1},
    {"id": 1, "data": [{"role": "user"}], "messages": []},
    {"dialog": [{"speaker": "A", "text": "one conversation, not two texts"}]},
    {"data": {"a": [{"text": "b"}]}},
    {"data": ["a"]},
    {"data": []},
])
def test_an_object_that_is_itself_a_row_is_not_unwrapped(tmp_path, row):
    for indent in (None, 2):
        try:
            assert rows_or_errors(write(tmp_path / "a.json", json.dumps(row, indent=indent).encode())) == [row]
        except UserError as error:
            assert "expected one list of rows in the object, found data and messages" in str(error)


def test_form_fields_cover_every_form():
    assert json_arrays.FORM_FIELDS.issuperset({"text", "chosen", *QUESTIONS, *ANSWERS,
                                             *(name for form in FORMS for name in form.fields)})


def test_lines_with_a_key_of_rows_are_rows(tmp_path):
    rows = [{"data": [{"text": "a"}]}, {"data": [{"text": "b"}]}]
    assert rows_or_errors(write(tmp_path / "a.jsonl", jsonl(rows))) == rows


def test_an_object_with_two_lists_of_rows_is_refused(tmp_path):
    file = write(tmp_path / "a.json", b'{"train": [{"text": "a"}],\n "test": [{"text": "b"}]}')
    with pytest.raises(UserError, match=r"1 .row 2.: expected one list of rows in the object, found train and test; "
                                        "write each to a file of its own"):
        rows_or_errors(file)


@pytest.mark.parametrize("rest, said", [
    ("", "1 (row 2): the object around data has no end, or goes on after it (was the file cut off?)"),
    ("}{}", "1 (row 2): the object around data has no end, or goes on after it (was the file cut off?)"),
    (", \n", "1 (row 2): the object around data has no end, or goes on after it (was the file cut off?)"),
    (', "x": [' + "1," * 2**20 + "1]}", "1 (row 2): expected little after the rows under data, found more than 1 MiB"),
])
def test_the_rest_of_an_object_around_rows_is_checked(tmp_path, rest, said):
    file = write(tmp_path / "a.json", b'{"data": [{"text": "a"}]' + rest.encode())
    assert rows_or_errors(file) == [{"text": "a"}, said]
