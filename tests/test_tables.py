"""Comma- and tab-separated tables are read into rows, each at its first line."""

import csv

import pytest
from data_files import places, rows_or_errors, write

from minimind_sft.data import tables
from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.reading import read_rows, read_texts
from minimind_sft.errors import UserError

CSV = '\ufeffinstruction,input,output\r\n问,,"答,\r\n""二"""\r\n\r\n,,\r\nq,i,a\r\n'


def test_the_header_names_the_fields_and_empty_cells_are_none(tmp_path):
    file = write(tmp_path / "a.csv", CSV.encode())
    assert rows_or_errors(file) == [{"instruction": "问", "output": '答,\r\n"二"'},
                                    {"instruction": "q", "input": "i", "output": "a"}]
    assert places(file) == ["2", "6"]
    assert [parse_conversation(row, place).messages[0]["content"] for place, row in read_rows(file)] == ["问", "q\ni"]
    assert list(read_texts(file)) == ["问", '答,\r\n"二"', "q", "i", "a"]


def test_a_tsv_is_separated_by_tabs(tmp_path):
    file = write(tmp_path / "a.tsv", b'prompt\tcompletion\nsay "hi", please\thi\n"two\nlines"\tyes\n')
    assert rows_or_errors(file) == [{"prompt": 'say "hi", please', "completion": "hi"},
                                    {"prompt": "two\nlines", "completion": "yes"}]


def test_each_bad_row_of_a_table_is_an_error_of_its_own(tmp_path):
    file = write(tmp_path / "a.csv", b'a,b\n1\n1,2,3\n"x"y,2\n\xff,2\n1,2\n')
    assert rows_or_errors(file) == [
        "2: expected 2 columns as in the header, found 1",
        "3: expected 2 columns as in the header, found 3",
        "4: broken CSV: ',' expected after '\"'",
        "5: not valid UTF-8: column 1 has the byte 0xff",
        {"a": "1", "b": "2"}]


@pytest.mark.parametrize("data, message", [
    (b"a;b\n1;2\n", "1: expected a header with commas between its names, found semicolons: a;b"),
    (b"a\tb\n1\t2\n", "1: expected a header with commas between its names, found tabs: a\tb"),
    (b"\na,b,a\n", "2: expected columns of different names, found 'a' more than once"),
    (b'"a,b\n', "1: a quoted cell of this row has no end; it would swallow all rows after it"),
    (b'a,b\n1,2\n3,"4\n5,6\n', "3: a quoted cell of this row has no end; it would swallow all rows after it"),
    (b"a,b\xff\n", "1: not valid UTF-8: column 2 has the byte 0xff"),
    (b"a,b\n\n", "the file has no rows"),
    (b"", "the file has no rows"),
])
def test_a_bad_table_is_reported_in_one_line(tmp_path, data, message):
    file = write(tmp_path / "a.csv", data)
    with pytest.raises(UserError) as error:
        list(read_rows(file))
    assert str(error.value).split(":", 1)[1].lstrip() == message


def test_a_column_without_a_name_is_named_by_its_number(tmp_path):
    file = write(tmp_path / "a.csv", b",question,answer,,\n0,q,a,,\n")
    assert rows_or_errors(file) == [{"column 1": "0", "question": "q", "answer": "a"}]


def test_a_long_cell_is_read(tmp_path):
    long = "x" * 2**20
    assert rows_or_errors(write(tmp_path / "a.csv", f"text\n{long}\n".encode())) == [{"text": long}]


def test_an_unclosed_quote_is_an_error_after_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 1000)
    limit = csv.field_size_limit(1000)
    try:
        with pytest.raises(UserError, match=r"a\.csv:3: a quoted cell of this row has no end; it would swallow all"):
            rows_or_errors(write(tmp_path / "a.csv", b'a,b\n1,2\n3,"' + b"4,5\n" * 1000))
    finally:
        csv.field_size_limit(limit)


def test_columns_and_the_lines_of_a_record_are_bounded(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a\.csv:1: expected at most 10,000 columns, found 2,000,001"):
        rows_or_errors(write(tmp_path / "a.csv", b"a," * 2_000_000))
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 1000)
    quoted = b'"a\n",' * 300 + b"b\n"
    with pytest.raises(UserError, match=r"b\.csv:3: a quoted cell of this row has no end; .* \(or the row has more"):
        rows_or_errors(write(tmp_path / "b.csv", b"text,b\nc,d\n" + quoted))
    assert rows_or_errors(write(tmp_path / "c.csv", b'text\n"a\nb"\n' * 200)) == [
        *[{"text": "a\nb"}, {"text": "text"}] * 199, {"text": "a\nb"}]
