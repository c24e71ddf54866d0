import gzip
import json

import pytest

from minimind_sft.data import reading
from minimind_sft.data.reading import find_files, parse_raw_row, read_raw_rows, read_rows, read_texts
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
    (b'{"a": 1}\n{"a": }', ":2: expected one JSON object per row, found broken JSON at column 7: Expecting value"),
    (b'[\n{"a": 1}\n]', ":1: expected one JSON object per row, found broken JSON at column 2: Expecting value"),
    (b'[1]', ":1: expected one JSON object per row, found a list"),
    (b'"hello"', ':1: expected one JSON object per row, found "hello"'),
    (b'{"a": 1}\n\n{"a": "\xe4\xb8"}', ":3: not valid UTF-8: byte 8 of the row is 0xe4"),
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
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"folder\.jsonl: cannot be read \(Is a directory\)"):
        list(read_rows(tmp_path / "folder.jsonl"))


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
    with pytest.raises(UserError, match=r"a\.json:2: the file ends in the middle of this row"):
        list(read_texts(write(tmp_path / "a.json", b"[\n")))
    with pytest.raises(UserError, match=r"a\.txt:2: not valid UTF-8: byte 1"):
        list(read_texts(write(tmp_path / "a.txt", b"a\n\xff")))
    with pytest.raises(UserError, match=r"a\.csv: expected a file named \*\.jsonl, \*\.jsonl\.gz, \*\.json, "):
        list(read_texts(write(tmp_path / "a.csv", b"a")))


def rows_or_errors(file) -> list:
    """Each row, or what is said about it."""
    found = []
    for raw in read_raw_rows(file):
        try:
            found.append(parse_raw_row(raw))
        except UserError as error:
            found.append(str(error).removeprefix(f"{file}:"))
    return found


def test_one_bad_line_does_not_hide_the_next(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": NaN}\n{"a": "\xff"}\n{"a": 2}\r\n{"a": -Infinity}\n{"a": "tor')
    assert rows_or_errors(file) == [
        {"a": 1},
        "2: NaN is no number in JSON",
        "3: not valid UTF-8: byte 8 of the row is 0xff",
        {"a": 2},
        "5: -Infinity is no number in JSON",
        "6: expected one JSON object per row, found broken JSON at column 7: Unterminated string starting at "
        "(the row has no end: was the file cut off?)",
    ]


def test_a_line_that_is_too_long_is_passed_over_without_being_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 2**20)
    long = b'{"a": "' + b"x" * (3 * 2**20) + b'"}'
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n' + long + b'\n{"a": 2}\n' + long)
    too_long = "expected at most 1 MiB in a row, found 3 MiB"
    assert rows_or_errors(file) == [{"a": 1}, f"2: {too_long}", {"a": 2}, f"4: {too_long}"]


def test_utf_16_is_recognised(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"a": 1}'.encode("utf-16"))
    assert rows_or_errors(file) == ["1: not valid UTF-8: byte 1 of the row is 0xff (UTF-16, by its look)"]


ARRAY = [{"a": "[,]{}\\\"", "b": [1, {"c": "\\"}]}, {"text": "中"}, {}]


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_has_the_rows_that_json_reads_from_it(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    text = json.dumps(ARRAY, ensure_ascii=False, indent=indent)
    file = write(tmp_path / "a.json", b"\xef\xbb\xbf \n" * (block > 2) + text.encode())
    assert rows_or_errors(file) == ARRAY


def test_rows_of_an_array_are_wrong_one_by_one_and_have_their_line(tmp_path):
    file = write(tmp_path / "a.json", b'[\n {"a": 1},\n {"a": },\n\n {"a":\n 2}, 3,\n {"a": "\n"},\n]\nx')
    expected = "expected one JSON object per row, found"
    assert [raw.place for raw in read_raw_rows(file)] == [f"{file}:{line}" for line in (2, 3, 5, 6, 7, 9, 10)]
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
def test_arrays_that_end_early_or_are_none(tmp_path, text, said):
    assert rows_or_errors(write(tmp_path / "a.json", text)) == said


def test_compressed_files_and_damaged_ones(tmp_path):
    packed = gzip.compress(b'{"a": 1}\n{"a": 2}\n')
    assert rows_or_errors(write(tmp_path / "a.jsonl.gz", packed)) == [{"a": 1}, {"a": 2}]
    assert rows_or_errors(write(tmp_path / "a.json.gz", gzip.compress(b'[{"a": 1}]'))) == [{"a": 1}]
    assert rows_or_errors(write(tmp_path / "a.txt.gz", gzip.compress("一\n\n二".encode()))) == [
        {"text": "一"}, {"text": "二"}]
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: the compressed file ends in the middle"):
        rows_or_errors(write(tmp_path / "b.jsonl.gz", packed[:-9]))
    with pytest.raises(UserError, match=r"c\.jsonl\.gz: not a gzip file, or a damaged one"):
        rows_or_errors(write(tmp_path / "c.jsonl.gz", b'{"a": 1}\n'))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二", "name": "x"}]},
            {"messages": [{"role": "user", "content": "三"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert rows_or_errors(tmp_path / "a.parquet") == rows  # without the null `name` that Arrow adds
    assert [raw.place for raw in read_raw_rows(tmp_path / "a.parquet")][1] == f"{tmp_path / 'a.parquet'}:2"
    with pytest.raises(UserError, match=r"b\.parquet: not a Parquet file, or a damaged one"):
        rows_or_errors(write(tmp_path / "b.parquet", b"PAR1 no"))


def test_names_and_globs_become_files_once_each_in_order(tmp_path):
    b, a, other = (write(tmp_path / name, b"{}") for name in ("b.jsonl", "a.jsonl", "c.json"))
    assert find_files([b, tmp_path / "*.jsonl", other]) == [b, a, other]
    for pattern, message in (("*.parquet", "no file matches it"), ("d.jsonl", "no such file"),
                             ("", "expected a file, found a folder")):
        with pytest.raises(UserError, match=message):
            find_files([tmp_path / pattern])
    odd = write(tmp_path / "e[1].jsonl", b"{}")
    assert find_files([odd]) == [odd]


def test_rows_on_one_line_are_told_apart_by_their_number(tmp_path):
    file = write(tmp_path / "a.json", b'[{"a": 1}, 2, {"a": 3},\n4, 5]')
    assert [raw.place.removeprefix(f"{file}:") for raw in read_raw_rows(file)] == [
        "1", "1 (row 2)", "1 (row 3)", "2", "2 (row 5)"]


@pytest.mark.parametrize("text", [b'[{"a": "%s"}]', b'[[%s]]'])
def test_a_row_of_an_array_that_never_ends_does_not_fill_the_memory(tmp_path, monkeypatch, text):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 2**20)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 2**16)
    file = write(tmp_path / "a.json", text % (b"[1], " * 300_000))
    with pytest.raises(UserError, match=r"a\.json:1: expected at most 1 MiB in a row of the array"):
        rows_or_errors(file)


def test_what_closes_and_follows_an_array_is_checked(tmp_path):
    assert rows_or_errors(write(tmp_path / "a.json", b'[{"a": 1}]{"b": 2}')) == [
        {"a": 1}, "1 (row 2): expected nothing after the array"]
    assert rows_or_errors(write(tmp_path / "a.json", b"[]]")) == ["1: expected nothing after the array"]
    with pytest.raises(UserError, match=r"a\.json:1: expected , or \] after a row of the array, found \}"):
        rows_or_errors(write(tmp_path / "a.json", b'[{"a": 1}}'))


def test_numbers_that_no_float_can_hold_are_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"a": 1e999}\n{"a": 1e30}\n')
    assert rows_or_errors(file) == ["1: 1e999 is too large a number", {"a": 1e30}]


def test_parquet_with_what_json_could_not_have(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    assert rows_or_errors(tmp_path / "a.parquet") == [
        {"text": "a"}, "2: a string is not valid UTF-8: its byte 1 is 0xff", {"text": "c"}]
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: expected columns of different names, found text, text"):
        rows_or_errors(tmp_path / "b.parquet")


def test_a_mark_before_a_first_line_of_just_the_longest_length(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 20)
    file = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": "12345678901"}\n{"a": 1}\n')
    assert rows_or_errors(file)[1:] == [{"a": 1}]
