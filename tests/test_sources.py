"""Resolving --data_path."""

import pytest

from minimind_sft.data.sources import Source, find_sources
from minimind_sft.errors import UserError
from minimind_sft.settings.data import split_share


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.jsonl", "c.json", "odd:0.5"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_without_shares_are_one_source_without_repetitions(folder):
    (folder / "link.jsonl").symlink_to("a.jsonl")
    (source,) = find_sources(["*[ab].jsonl", "c.json", "./a.jsonl", "link.jsonl"], "--data_path")
    assert (source.name, source.share) == ("*[ab].jsonl, c.json, ./a.jsonl, link.jsonl", None)
    assert [path.name for path in source.files] == ["a.jsonl", "b.jsonl", "c.json"]


def test_every_pattern_with_a_share_is_a_source(folder):
    first, second = find_sources(["*.jsonl:0.7", "c.json:2"], "--data_path")
    assert (first.name, first.share, len(first.files)) == ("*.jsonl", 0.7, 2)
    assert second == Source("c.json", second.files, 2.0) and second.files[0].name == "c.json"


@pytest.mark.parametrize("text, parts", [
    ("a.jsonl:0.7", ("a.jsonl", "0.7")), ("a.jsonl:3", ("a.jsonl", "3")), ("a.jsonl:.5", ("a.jsonl", ".5")),
    ("a.jsonl", ("a.jsonl", "")), ("odd:0.5", ("odd:0.5", "")), ("C:/a.jsonl", ("C:/a.jsonl", "")),
])
def test_a_share_is_what_follows_the_last_colon_unless_a_file_has_that_name(folder, text, parts):
    assert split_share(text) == parts


@pytest.mark.parametrize("texts, message", [
    (["a.jsonl:0.7", "c.json"], "--data_path c.json: expected a share like those of the others, c.json:0.5"),
    (["a.jsonl:0"], "--data_path a.jsonl: the share is 0, expected a number above 0"),
    (["a.jsonl:0.5", "*.jsonl:0.5"], "--data_path *.jsonl: a.jsonl has a share already, as a.jsonl"),
    (["a.jsonl:50%", "c.json:1"],
     "--data_path a.jsonl:50%: no such file (a share is a plain number, as in a.jsonl:0.5)"),
    (["a.jsonl,c.json"], "--data_path a.jsonl,c.json: no such file (blanks separate files, not commas)"),
    (["https://example.com/a.jsonl"], "--data_path https://example.com/a.jsonl: no such file (nothing is downloaded "
                                      "here; give a file on this machine)"),
    (["tatsu-lab/alpaca"], "--data_path tatsu-lab/alpaca: no such file (a data set of Hugging Face has to be fetched "
                           "first: hf download tatsu-lab/alpaca --repo-type dataset --local-dir alpaca)"),
    (["folder/a.json"], "--data_path folder/a.json: no such file"),
    (["none.jsonl:0.7"], "--data_path none.jsonl: no such file"),
    (["*.parquet"], "--data_path *.parquet: no file matches it"),
])
def test_bad_shares_and_missing_files_are_refused(folder, texts, message):
    with pytest.raises(UserError) as error:
        find_sources(texts, "--data_path")
    assert str(error.value) == message


def test_impossible_file_names_are_refused_in_one_line(folder):
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)$"):
        find_sources(["a" * 400], "--data_path")
    with pytest.raises(UserError, match="expected a name in valid UTF-8"):
        (folder / "\udcff.jsonl").write_text("{}", encoding="utf-8")
        find_sources(["*.jsonl"], "--data_path")
