"""Reading lines of data files, compressed or not."""

import bz2
import gzip
import lzma
import sys
from hashlib import sha512

import pytest
from data_files import rows_or_errors, write

from minimind_sft.data import lines
from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("pyarrow").compress(data, codec="zstd", asbytes=True)


PACKERS = {"gz": (gzip.compress, "gzip"), "bz2": (bz2.compress, "bzip2"), "xz": (lzma.compress, "xz"),
           "zst": (zstd, "zstd")}


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_kind_of_text_file_can_be_compressed(tmp_path, suffix):
    pack, _ = PACKERS[suffix]
    for name, data, rows in (
        ("a.jsonl", b'{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("a.ndjson", b'{"a": 1}\n', [{"a": 1}]),
        ("a.JSON", b'[{"a": 1}]', [{"a": 1}]),
        ("a.json", b'{"data": [\n {"a": 1}]}', [{"a": 1}]),
        ("a.txt", "一\n\n二".encode(), [{"text": "一"}, {"text": "二"}]),
        ("a.csv", b"a,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ("a.tsv", b"a\tb\n1\t2\n", [{"a": "1", "b": "2"}]),
    ):
        file = write(tmp_path / f"{name}.{suffix}", pack(data))
        assert find_files([file]) == [file]
        assert rows_or_errors(file) == rows, name


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_compressed_files_are_named(tmp_path, suffix):
    pack, name = PACKERS[suffix]
    packed = pack(b"".join(b'{"a": %d}\n' % number for number in range(1000)))
    with pytest.raises(UserError, match=rf"b\.jsonl\.{suffix}: the compressed file ends in the middle"):
        rows_or_errors(write(tmp_path / f"b.jsonl.{suffix}", packed[:-9]))
    with pytest.raises(UserError, match=rf"c\.jsonl\.{suffix}: not a {name} file, or a damaged one"):
        rows_or_errors(write(tmp_path / f"c.jsonl.{suffix}", b"\xff" * 100))
    with pytest.raises(UserError, match=rf"d\.jsonl\.{suffix}: the content is not compressed; rename the file, "):
        rows_or_errors(write(tmp_path / f"d.jsonl.{suffix}", b'{"a": 1}\n'))


def test_zstd_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl.zst", zstd(b"{}\n"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a\.jsonl\.zst: reading \.zst needs pyarrow: pip install 'minimind-sft\[parq"):
        rows_or_errors(file)


def test_an_overlong_line_is_an_error_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 2**20)
    long = b'{"a": "' + b"x" * (3 * 2**20) + b'"}'
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n' + long + b'\n{"a": 2}\n' + long)
    too_long = "expected at most 1 MiB in a row, found 3 MiB"
    assert rows_or_errors(file) == [{"a": 1}, f"2: {too_long}", {"a": 2}, f"4: {too_long}"]


def test_a_byte_order_mark_does_not_count_in_the_length_of_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 20)
    file = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": "12345678901"}\n{"a": 1}\n')
    assert rows_or_errors(file)[1:] == [{"a": 1}]


def test_a_line_that_never_ends_ends_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 2**20)
    monkeypatch.setattr(lines, "MAX_SKIPPED_BYTES", 4 * 2**20)
    file = write(tmp_path / "a.txt", b"one\n" + b"x" * (6 * 2**20) + b"\ntwo\n")
    with pytest.raises(UserError, match=r"a\.txt:2: expected at most 1 MiB in a row, found no end of the line"):
        rows_or_errors(file)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(lines, "MIN_EXPANDED_BYTES", 2**20)
    monkeypatch.setattr(lines, "MAX_EXPANSION", 10)
    file = write(tmp_path / f"a.txt.{suffix}", PACKERS[suffix][0](b"text\n" * 2**20))
    with pytest.raises(UserError, match=r"expected text, found more than 10 times the size of the compressed file"):
        rows_or_errors(file)


def test_rows_that_share_a_long_system_prompt_are_no_bomb(tmp_path):
    """Such data unpack to a few hundred times their size."""
    prompt = "".join(map(str, range(10_000)))
    content = b"".join(b'{"system": "%s", "answer": "%s"}\n' % (
        prompt.encode(), sha512(b"%d" % number).hexdigest().encode()) for number in range(600))
    packed = lzma.compress(content, preset=1)
    assert len(content) > max(200 * len(packed), lines.MIN_EXPANDED_BYTES)
    assert len(rows_or_errors(write(tmp_path / "a.jsonl.xz", packed))) == 600


def test_xz_streams_may_follow_one_another_with_padding(tmp_path):
    packed = lzma.compress(b"one\ntw") + bytes(8) + lzma.compress(b"o\n")
    assert rows_or_errors(write(tmp_path / "a.txt.xz", packed)) == [{"text": "one"}, {"text": "two"}]


def test_xz_that_needs_much_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]
    file = write(tmp_path / "a.txt.xz", lzma.compress(b"one\n", filters=filters))
    with pytest.raises(UserError, match=r"a\.txt\.xz: expected an xz file that can be unpacked in 100 MiB of memory"):
        rows_or_errors(file)


def test_a_file_of_blank_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_BLANK_LINES", 3)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\n \nx\n\n\r\n\t\ny\n")
    with lines.opened(path) as file:
        assert [row.content for row in lines.lines(file, path)][3::4] == [b"x\n", b"y\n"]
    path.write_bytes(b"x\n\n\n\n\n")
    with lines.opened(path) as file, pytest.raises(UserError, match=r"a\.txt:5: expected rows, found 3 blank lines"):
        list(lines.lines(file, path))
