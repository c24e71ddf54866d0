"""Files whose content is not what their names say are refused with a remedy."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from shlex import quote

import pytest
from data_files import rows_or_errors, write
from programs import PATIENCE

from minimind_sft.data import recognition
from minimind_sft.data.reading import read_texts
from minimind_sft.errors import UserError

CHINESE = '{"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}]}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def refusal(file) -> str:
    with pytest.raises(UserError) as error:
        rows_or_errors(file)
    with pytest.raises(UserError) as same:
        list(read_texts(file))
    assert str(error.value) == str(same.value)
    return str(error.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_git_lfs_pointers_are_recognised(tmp_path, name):
    assert refusal(write(tmp_path / name, POINTER)) == (
        "a Git LFS pointer, not the file itself: run git lfs pull in its repository")


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as out:
            out.writestr("a.jsonl", "{}\n")
    else:
        with tarfile.open(fileobj=file, mode=kind) as out:
            out.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    return file.getvalue()


TAR = "the content is a tar archive; unpack it and name the files in it"
PAGE = "the content is a web page; download the file itself (a page that shows a file is not the file)"


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl", gzip.compress(b"{}\n"), "the content is gzip data; rename the file so that it ends in .gz"),
    ("a.json", bz2.compress(b"{}\n"), "the content is bzip2 data; rename the file so that it ends in .bz2"),
    ("a.csv", lzma.compress(b"{}\n"), "the content is xz data; rename the file so that it ends in .xz"),
    ("a.jsonl.gz", b"\x28\xb5\x2f\xfd\x00", "the content is zstd data; rename the file so that it ends in .zst"),
    ("a.parquet", gzip.compress(b"{}\n"), "the content is gzip data; rename the file so that it ends in .gz"),
    ("a.json", b"PAR1\x15\x04", "the content is a Parquet file; rename it so that it ends in .parquet"),
    ("a.parquet", b"ARROW1\0\0", "the content is an Arrow file; rename it so that it ends in .arrow"),
    ("a.csv", archive("zip"),
     "the content is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8"),
    ("a.jsonl", archive("w"), TAR),
    ("a.jsonl.gz", archive("w:gz"), TAR),
    ("a.jsonl.xz", archive("w:xz"), TAR),
    ("a.jsonl", b"\n<!DOCTYPE html>\n<html>", PAGE),
    ("a.parquet", b"<html lang='en'>", PAGE),
    ("a.json.gz", gzip.compress(b"\xef\xbb\xbf<!doctype HTML>"), PAGE),
    ("a.txt", b'{"id": 1, "messages": []}\n', "the content is rows in JSON; rename the file, .txt to .jsonl"),
    ("a.csv", b'\xef\xbb\xbf[\n {"text": "a"}]', "the content is rows in JSON; rename the file, .csv to .jsonl"),
    ("a.txt.gz", gzip.compress(b'{"text": "a"}'), "the content is rows in JSON; rename the file, .txt to .jsonl"),
    ("a.jsonl", b"\n Hello,\nthis is text.\n",
     "expected JSON, found text; running text has the suffix .txt, a table .csv or .tsv"),
    ("a.txt", b"%PDF-1.7\n", "the content is a PDF document; save its text"),
], ids=lambda value: "content" if isinstance(value, bytes) else None)  # archives hold the time they were made
def test_other_kinds_of_file_are_recognised(tmp_path, name, content, message):
    assert refusal(write(tmp_path / name, content)) == message


def test_text_in_gb18030_is_one_error_with_the_command_that_converts_it(tmp_path):
    file = write(tmp_path / "a b.jsonl", (CHINESE * 50).encode("gb18030"))
    assert refusal(file) == (
        "expected UTF-8, found what looks like GB18030; to convert the file: "
        f"iconv -f GB18030 -t UTF-8 {quote(str(file))} > {quote(f'{tmp_path}/a b.utf8.jsonl')}")
    file = write(tmp_path / "a.csv.gz", gzip.compress("question,answer\n你好,您好！\n".encode("gbk")))
    assert refusal(file).endswith(
        f"to convert the file: gzip -dc {quote(str(file))} | iconv -f GB18030 -t UTF-8 > "
        f"{quote(f'{tmp_path}/a.utf8.csv')}")


@pytest.mark.parametrize("codec, named", [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"),
                                          ("utf-32", "UTF-32")])
@pytest.mark.parametrize("text", ['{"a": 1}', CHINESE, "一\t二\n中文\t的的的\n"])
def test_utf_16_and_utf_32_are_recognised(tmp_path, codec, named, text):
    if not text.isascii() and "a" not in text and codec.endswith("e"):
        pytest.skip("without a mark, UTF-16 is recognised by its ASCII characters")
    file = write(tmp_path / "a.jsonl", text.encode(codec))
    assert refusal(file).startswith(f"expected UTF-8, found what looks like {named}; to convert the file: "
                                    f"iconv -f {named} -t UTF-8 ")


@pytest.mark.parametrize("codec", ["gb18030", "utf-16", "utf-16-le", "utf-32"])
def test_the_command_converts_the_file(tmp_path, monkeypatch, codec):
    if not shutil.which("iconv"):
        pytest.skip("iconv is not here")
    file = write(tmp_path / "it's.jsonl", CHINESE.encode(codec))
    command = refusal(file).partition("to convert the file: ")[2]
    subprocess.run(command, shell=True, check=True, timeout=PATIENCE)
    assert (tmp_path / "it's.utf8.jsonl").read_text(encoding="utf-8") == CHINESE


@pytest.mark.parametrize("codec, named", [("gb18030", "GB18030"), ("utf-16", "UTF-16")])
def test_the_command_for_windows_converts_the_file(tmp_path, monkeypatch, codec, named):
    file = write(tmp_path / "a.jsonl", CHINESE.encode(codec))
    monkeypatch.setattr(recognition, "IS_WINDOWS", True)
    command = recognition.conversion(file, named)
    assert command.startswith('python -c "') and command.endswith('"')
    code = command.removeprefix('python -c "').removesuffix('"')
    assert '"' not in code
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE, env=os.environ)
    assert (tmp_path / "a.utf8.jsonl").read_bytes() == CHINESE.encode()


@pytest.mark.parametrize("codec, text", [
    ("latin-1", "Où est le café ? Là-bas, à côté de l'hôtel.\n"),
    ("cp1252", "Ärger über Größe – schöne Grüße\n"),
    ("shift-jis", "こんにちは。今日は良い天気ですね。\n"),
    ("euc-jp", "こんにちは。今日は良い天気ですね。\n"),
    ("euc-kr", "안녕하세요. 오늘은 날씨가 좋습니다. 무엇을 도와 드릴까요?\n"),
    ("big5", "你好，請問今天的天氣如何？謝謝您的回答。\n"),
    ("koi8-r", "Здравствуйте, как я могу вам помочь сегодня?\n"),
    ("cp1251", "Здравствуйте, как я могу вам помочь сегодня?\n"),
])
def test_other_encodings_are_not_guessed(tmp_path, codec, text):
    (said,) = rows_or_errors(write(tmp_path / "a.txt", text.encode(codec)))
    assert said.startswith("1: not valid UTF-8: byte ") and "look" not in said


def test_a_single_gb18030_line_is_a_bad_row(tmp_path):
    lines = [CHINESE.encode()] * 3 + [CHINESE.encode("gb18030")]
    found = rows_or_errors(write(tmp_path / "a.jsonl", b"".join(lines)))
    assert found[3] == "4: not valid UTF-8: byte 44 of the row is 0xc4 (it looks like GB18030)"
    assert len(found) == 4 and all(isinstance(row, dict) for row in found[:3])


def test_utf_8_of_any_language_is_read(tmp_path):
    texts = ["你好", "\ufeff中", "안녕", "é" * 2**19 + "x", "x" * (2**20 - 1) + "é", "<p>html</p>", "a\0b",
             '{"a": 1}', "[1]"]
    for text in texts:
        found = rows_or_errors(write(tmp_path / "a.txt", text.encode()))
        assert found == [{"text": text.removeprefix("\ufeff")}]


def test_files_from_public_bug_reports(shared):
    folder = shared / "cases" / "files"
    if not folder.exists():
        pytest.skip("the reference folder has no cases")
    rows = {path.name: path for path in folder.iterdir()}
    for name in ("array_in_jsonl_pretty.jsonl", "pretty_objects.jsonl", "x.ndjson"):
        assert [row["messages"][1]["content"] for row in rows_or_errors(rows[name])] == ["您好！", "hello"]
    assert [list(row) for row in rows_or_errors(rows["single_object_pretty.json"])] == [["messages"]]
    assert rows_or_errors(rows["x.csv"]) == [{"instruction": "q", "output": "a"}]
    assert "iconv -f GB18030 -t UTF-8 " in refusal(rows["gbk.jsonl"])
    assert "git lfs pull" in refusal(rows["lfs_pointer.jsonl"])
    assert refusal(rows["x.jsonl.zst"]) == "the compressed file ends in the middle"
