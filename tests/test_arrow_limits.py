"""Parquet and Arrow files that stand for far more than their bytes, and types that are read as before."""

from decimal import Decimal

import pytest
from data_files import rows_or_errors

from minimind_sft.data import arrow, arrow_limits, parquet_limits
from minimind_sft.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

LONG = "ab " * 100_000


def written(path, table, **options):
    """Writes a Parquet file, or an Arrow stream or file by the first letter of its name."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path, **{"dictionary_pagesize_limit": 2**30, **options})
    else:
        new = pyarrow.ipc.new_file if path.name.startswith("f") else pyarrow.ipc.new_stream
        with new(str(path), table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
    return path


def repeated(text: str, count: int):
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), [text])


@pytest.mark.parametrize("name", ["a.parquet", "s.arrow", "f.arrow"])
def test_a_text_that_all_rows_share_is_in_memory_once(tmp_path, name):
    file = written(tmp_path / name, pyarrow.table({"text": repeated(LONG, 200)}))
    before = pyarrow.total_allocated_bytes()
    rows = arrow.arrow_rows(file, "parquet" if name.endswith("parquet") else "arrow")
    assert next(rows).content == {"text": LONG}
    assert pyarrow.total_allocated_bytes() - before < 20 * len(LONG)
    assert sum(1 for _ in rows) == 199


@pytest.mark.parametrize("name", ["a.parquet", "s.arrow", "f.arrow"])
def test_a_row_that_repeats_a_text_is_too_large(tmp_path, name):
    turns = pyarrow.StructArray.from_arrays([repeated("user", 100), repeated(LONG, 100)], ["role", "content"])
    messages = pyarrow.ListArray.from_arrays([0, 98, 99, 100], turns)
    large, *others = rows_or_errors(written(tmp_path / name, pyarrow.table({"messages": messages})))
    assert large == "1: expected at most 6 MiB in a row, found 28 MiB"
    assert others == [{"messages": [{"role": "user", "content": LONG}]}] * 2


@pytest.mark.parametrize("name", ["a.parquet", "s.arrow", "f.arrow"])
def test_more_rows_than_bytes_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(arrow, "MAX_ROWS", 1000)
    file = written(tmp_path / name, pyarrow.table({"text": pyarrow.nulls(100_000, pyarrow.string())}))
    with pytest.raises(UserError, match="expected rows of text, found more rows than the file has bytes"):
        rows_or_errors(file)


@pytest.mark.parametrize("name", ["s.arrow", "f.arrow"])
def test_a_large_batch_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, name):
    file = written(tmp_path / name, pyarrow.table({"text": [LONG] * 10}))
    monkeypatch.setattr(arrow_limits, "MAX_BATCH_BYTES", 9 * len(LONG))
    with pytest.raises(UserError, match=r"\.arrow: expected batches of at most 2 MiB, found one of 3 MiB"):
        rows_or_errors(file)


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
def test_large_pages_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, options):
    file = written(tmp_path / "a.parquet", pyarrow.table({"text": [LONG + "x" * number for number in range(10)]}),
                   data_page_size=2**30, **options)
    assert len(rows_or_errors(file)) == 10
    monkeypatch.setattr(parquet_limits, "MAX_PAGES_BYTES", 9 * len(LONG))
    with pytest.raises(UserError, match=r"a\.parquet: expected pages of at most 2 MiB, found pages of 3 MiB"):
        rows_or_errors(file)


def test_the_sizes_of_pages_are_those_of_the_texts(tmp_path):
    texts = [f"{number:0100000}" for number in range(30)]
    file = written(tmp_path / "a.parquet", pyarrow.table({"text": texts}), use_dictionary=False, data_page_size=10**6,
                   write_batch_size=1, write_statistics=True)
    chunk = parquet.read_metadata(file).row_group(0).column(0)
    with file.open("rb") as opened:
        sizes = list(parquet_limits.page_sizes(opened, chunk))
    assert len(sizes) == 3 and all(1_000_000 <= size < 1_200_000 for size in sizes)


def test_a_broken_header_of_a_page_is_reported(tmp_path):
    file = written(tmp_path / "a.parquet", pyarrow.table({"text": ["a", "b"]}))
    content = bytearray(file.read_bytes())
    content[4:12] = b"\xff" * 8
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file, or a damaged one"):
        rows_or_errors(file)


def test_lists_with_more_values_than_bytes_and_huge_fixed_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_limits, "MAX_VALUES", 1000)
    nulls = pyarrow.ListArray.from_arrays([0, 50_000], pyarrow.nulls(50_000, pyarrow.string()))
    with pytest.raises(UserError, match=r"messages.* expected fewer values than the file has bytes, found 50,000"):
        rows_or_errors(written(tmp_path / "a.parquet", pyarrow.table({"messages": nulls})))
    fixed = pyarrow.array([b"a" * 2000], pyarrow.binary(2000))
    with pytest.raises(UserError, match="id: expected text, found values of 2,000 bytes each"):
        rows_or_errors(written(tmp_path / "b.parquet", pyarrow.table({"id": fixed})))


def test_texts_that_repeat_the_one_before_are_read_one_by_one(tmp_path):
    file = written(tmp_path / "a.parquet", pyarrow.table({"text": ["abc", "abcd"]}), use_dictionary=False,
                   column_encoding={"text": "DELTA_BYTE_ARRAY"})
    assert parquet_limits.rows_at_once(parquet.read_metadata(file), 0) == 1
    assert rows_or_errors(file) == [{"text": "abc"}, {"text": "abcd"}]


@pytest.mark.parametrize("values, read", [
    (["a", None, "b"], ["a", None, "b"]),
    (pyarrow.array(["a", None], pyarrow.large_string()), ["a", None]),
    (pyarrow.array(["a" * 30, None], pyarrow.string_view()), ["a" * 30, None]),
    (pyarrow.array(["a", "a", None]).dictionary_encode(), ["a", "a", None]),
    (pyarrow.DictionaryArray.from_arrays(pyarrow.array([1, None]), pyarrow.array([1, 2])), [2, None]),
    (pyarrow.array([{"a": ["b", None]}, None]), [{"a": ["b", None]}, None]),
    (pyarrow.array([[("k", "v")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())), [[("k", "v")], []]),
    (pyarrow.array([["a", "b"]], pyarrow.list_(pyarrow.string(), 2)), [["a", "b"]]),
    (pyarrow.array([["a"], []], pyarrow.large_list(pyarrow.string())), [["a"], []]),
    ([Decimal("1.5")], [Decimal("1.5")]),
])
@pytest.mark.parametrize("name", ["a.parquet", "s.arrow", "f.arrow"])
def test_values_of_all_types_have_a_size_and_are_read(tmp_path, name, values, read):
    table = pyarrow.table({"value": values, "id": list(range(len(read)))})
    rows = rows_or_errors(written(tmp_path / name, table))
    assert [row.get("value") for row in rows] == read
    for batch in table.to_batches():
        assert arrow_limits.value_bytes(batch) >= 32 * len(read)


def test_a_date_that_python_lacks_is_an_error_of_its_row(tmp_path):
    dates = pyarrow.array([0, 2**62], pyarrow.timestamp("s"))
    first, second = rows_or_errors(written(tmp_path / "s.arrow", pyarrow.table({"text": ["a", "b"], "at": dates})))
    assert first["text"] == "a" and second.startswith("2: a value cannot be read (")


@pytest.mark.parametrize("name", ["a.parquet", "s.arrow"])
def test_far_more_text_than_bytes_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(arrow, "MIN_TEXT_BYTES", 100 * len(LONG))
    file = written(tmp_path / name, pyarrow.table({"text": repeated(LONG, 99)}))
    assert len(rows_or_errors(file)) == 99
    monkeypatch.setattr(arrow, "MIN_TEXT_BYTES", 90 * len(LONG))
    with pytest.raises(UserError, match="expected rows of text, found more than 1,000 times the size of the file"):
        rows_or_errors(file)
