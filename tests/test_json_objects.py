"""JSON objects are read into rows, one per line or over several lines, whatever the suffix."""

import json

import pytest
from data_files import jsonl, places, rows_or_errors, write

from minimind_sft.data import json_objects
from minimind_sft.data.lines import RawRow
from minimind_sft.errors import UserError

ROWS = [{"messages": [{"role": "user", "content": "你好 } ] \\ \""}, {"role": "assistant", "content": "{["}]},
        {"text": "二"}, {"messages": []}]
SUFFIXES = (".jsonl", ".ndjson", ".json")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
def test_arrays_and_objects_of_any_layout_are_read_whatever_the_suffix(tmp_path, suffix, indent):
    texts = [json.dumps(row, ensure_ascii=False, indent=indent) for row in ROWS]
    for content in (json.dumps(ROWS, ensure_ascii=False, indent=indent), "\n".join(texts), "\r\n".join(texts) + "\r\n",
                    "\n\n".join(texts), "".join(texts), ",\n".join(texts), "\ufeff \n" + " ".join(texts)):
        file = write(tmp_path / f"a{suffix}", content.encode())
        assert rows_or_errors(file) == ROWS, content
        assert len(set(places(file))) == 3


class Counted(bytes):
    """Text that counts the bytes that are copied out of it."""

    copied = 0

    def __getitem__(self, where):
        part = super().__getitem__(where)
        if isinstance(where, slice):
            Counted.copied += len(part)
            return Counted(part)
        return part


def test_a_line_of_many_objects_is_copied_once(monkeypatch):
    """Copying the rest of the line for each object would take minutes for a file of a few MiB."""
    monkeypatch.setattr(Counted, "copied", 0)
    line = Counted(b'{"question": "q", "answer": "a"}' * 2000)
    assert sum(1 for _ in json_objects.object_rows(iter([RawRow("a.jsonl:1", line)]))) == 2000
    assert len(line) <= Counted.copied < 2 * len(line)


def test_the_place_of_an_object_is_its_first_line(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n\n{\n "a": 2\n}{"a": 3}\n{\n "a":\n {}\n}\n{"a": 4} {"a": 5}')
    assert rows_or_errors(file) == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": {}}, {"a": 4}, {"a": 5}]
    assert places(file) == ["1", "3", "5", "6", "10", "10 (row 6)"]


def test_byte_order_marks_of_concatenated_files_are_ignored(tmp_path):
    file = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n{"a": 3}\n')
    assert rows_or_errors(file) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_single_object_over_several_lines(tmp_path):
    assert rows_or_errors(write(tmp_path / "a.json", json.dumps(ROWS[0], indent=2).encode())) == [ROWS[0]]
    assert rows_or_errors(write(tmp_path / "a.jsonl", b"{\n}")) == [{}]


def test_a_broken_object_is_one_error_and_the_others_are_read(tmp_path):
    text = b'{\n "a": 1\n}\n{\n "a": 2,\n}\n{\n "a": NaN\n}\n{\n "a": "x\n}\n{\n "a": 3\n}\n'
    assert rows_or_errors(write(tmp_path / "a.jsonl", text)) == [
        {"a": 1},
        "4: expected one JSON object per row, found broken JSON at line 6, column 1: Expecting property name enclosed "
        "in double quotes",
        "7: NaN is not a number in JSON",
        "10: expected one JSON object per row, found broken JSON at line 11, column 9: Invalid control character at",
        {"a": 3}]


def without_end(line: int) -> str:
    return f"{line}: expected one JSON object per row, found one without an end (was the file cut off?)"


@pytest.mark.parametrize("indent", [0, 2])
def test_a_torn_object_is_one_error(tmp_path, indent):
    whole, torn = json.dumps(ROWS[1], indent=indent), json.dumps(ROWS[0], indent=indent)[:-12]
    assert rows_or_errors(write(tmp_path / "a.jsonl", f"{whole}\n{torn}".encode())) == [ROWS[1], without_end(4)]
    assert rows_or_errors(write(tmp_path / "b.jsonl", torn.encode())) == [without_end(1)]


def test_a_part_of_an_object_is_one_error_and_not_a_row(tmp_path):
    """Without the lines before it, {"text": "no row"} could be taken for running text."""
    text = b' "content": [\n  {\n   "text": "no row"\n  },\n  {"text": "no row"}\n ]\n}\n{"text": "a row"}\n]\n'
    inside = "expected one JSON object per row, found the middle or the end of one (is the part before it missing?)"
    assert rows_or_errors(write(tmp_path / "a.jsonl", text)) == [f"1: {inside}", {"text": "a row"}, f"9: {inside}"]


@pytest.mark.parametrize("torn", [b'{"a": "tor', b'{"a": 1,', b'{"a": [{"b": 1},', b'{"a": [1, 2', b'{"a":', b"{"])
def test_a_truncated_line_does_not_hide_other_lines(tmp_path, torn):
    good = jsonl(ROWS)
    found = rows_or_errors(write(tmp_path / "a.jsonl", torn + b"\n" + good + torn + b"\n" + good))
    assert [row for row in found if isinstance(row, dict)] == [*ROWS, *ROWS]
    assert [row.split(":")[0] for row in found if isinstance(row, str)] == ["1", "5"]


def test_lines_with_lists_are_bad_rows(tmp_path):
    refused = "expected one JSON object per row, found a list"
    assert rows_or_errors(write(tmp_path / "a.jsonl", b'[{"a": 1}]\n[{"a": 2}]\n{"a": 3}\n')) == [
        f"1: {refused}", f"2: {refused}", {"a": 3}]


@pytest.mark.parametrize("limit", ["MAX_ROW_BYTES", "MAX_ROW_LINES"])
def test_an_overlong_object_is_an_error_after_a_limit(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(json_objects, limit, 1000)
    text = b'{\n "a": [\n' + b"  1,\n" * 100_000
    with pytest.raises(UserError, match=r"a\.jsonl:3: expected at most .* in a row, found no end"):
        rows_or_errors(write(tmp_path / "a.jsonl", b'{"a": 1}\n\n' + text))
    torn = b'{"a": [{"b": 1},\n' + b'{"a": [{"b": 1}]}\n' * 5000
    found = rows_or_errors(write(tmp_path / "a.jsonl", torn))
    assert len(found) == 5001 and found[1:] == [{"a": [{"b": 1}]}] * 5000
