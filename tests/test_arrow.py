"""Reading rows from Parquet files, Arrow files and folders written by `datasets.save_to_disk`."""

import sys

import pytest
from data_files import places, rows_or_errors, write

from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError

ROWS = [{"messages": [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二", "name": "x"}]},
        {"messages": [{"role": "user", "content": "三"}]}]


def test_parquet_rows_and_places(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert rows_or_errors(tmp_path / "a.parquet") == ROWS  # without the null `name` that Arrow adds
    assert places(tmp_path / "a.parquet") == ["1", "2"]
    with pytest.raises(UserError, match=r"b\.parquet: not a Parquet file, or a damaged one"):
        rows_or_errors(write(tmp_path / "b.parquet", b"PAR1 no"))


def test_parquet_with_invalid_utf_8_or_repeated_columns_is_refused(tmp_path):
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


def test_arrow_streams_and_arrow_files_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    for new, name in ((pyarrow.ipc.new_stream, "a.arrow"), (pyarrow.ipc.new_file, "b.arrow")):
        with new(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
        assert rows_or_errors(tmp_path / name) == ROWS
        assert places(tmp_path / name) == ["1", "2"]


def test_a_truncated_arrow_stream_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    whole = (tmp_path / "a.arrow").read_bytes()
    for end in (len(whole) - 8, len(whole) - 30, 3, 0):
        with pytest.raises(UserError, match=r"b\.arrow: not an Arrow file, or a damaged one"):
            rows_or_errors(write(tmp_path / "b.arrow", whole[:end]))


def test_a_save_to_disk_folder_stands_for_its_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    files = [tmp_path / "one" / f"data-0000{number}-of-00002.arrow" for number in (0, 1)]
    assert find_files([tmp_path / "one"]) == files
    assert [row for file in files for row in rows_or_errors(file)] == ROWS
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(tmp_path / "all")
    (test,) = find_files([tmp_path / "all" / "test"])
    assert rows_or_errors(test) == ROWS[1:]
    with pytest.raises(UserError) as error:
        find_files([tmp_path / "all"])
    assert str(error.value) == (f"{tmp_path}/all: expected one split of a saved dataset, found a folder with all "
                                f"splits: name {tmp_path}/all/train or {tmp_path}/all/test")
    files[1].unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: no such file, though .*state\.json lists it"):
        find_files([tmp_path / "one"])


@pytest.mark.parametrize("name, content, message", [
    ("state.json", "{", r"state\.json: expected a JSON object, found broken JSON"),
    ("state.json", "[]", r"state\.json: expected a JSON object, found an empty list"),
    ("state.json", "{}", r"state\.json: _data_files: expected a list"),
    ("state.json", '{"_data_files": [{}]}', r"state\.json: _data_files: expected objects with a filename"),
    ("dataset_dict.json", '{"splits": 5}', r"dataset_dict\.json: splits: expected a list"),
])
def test_a_broken_save_to_disk_folder_is_refused(tmp_path, name, content, message):
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        find_files([tmp_path])


@pytest.mark.parametrize("kind, named", [("parquet", "a Parquet"), ("arrow", "an Arrow")])
def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch, kind, named):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=f"a.{kind}: reading {named} file needs pyarrow: pip install 'minimind-sft"):
        rows_or_errors(write(tmp_path / f"a.{kind}", b""))


def test_damaged_arrow_files_are_refused(tmp_path):
    """Unchecked, a wrong length makes pyarrow read past the end of its memory."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS * 5)
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    whole = (tmp_path / "a.arrow").read_bytes()
    refused = 0
    for position in range(8, len(whole) - 8, 5):
        file = write(tmp_path / "b.arrow", whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1:])
        try:
            rows_or_errors(file)
        except UserError as error:
            assert str(error).startswith(f"{file}: ")
            refused += 1
    assert refused > 20
