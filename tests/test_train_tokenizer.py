"""trainer/train_tokenizer.py, run as a user runs it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from chats import TOKENIZER as BUNDLED
from programs import PATIENCE, run_without_room

from minimind_sft.data.tokenizer import Tokenizer


def train(repository, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "trainer/train_tokenizer.py", *map(str, arguments)], cwd=repository,
                          capture_output=True, text=True, timeout=PATIENCE)


def test_train_tokenizer_is_deterministic_and_makes_a_usable_tokenizer(repository, tmp_path):
    text, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("the cat and the hat and the bat\n" * 20, encoding="utf-8")
    rows.write_text('{"text": "天气很好"}\n' * 20, encoding="utf-8")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        done = train(repository, "--data_path", text, rows, "--vocab_size", 325, "--save_dir", folder)
        assert done.returncode == 0, done.stderr
    one, two = ([(folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")]
                for folder in folders)
    assert one == two

    tokenizer = Tokenizer.from_folder(folders[0])
    assert tokenizer.vocab_size == 325
    assert tokenizer.chat_template == BUNDLED.chat_template
    assert tokenizer.control_tokens() == BUNDLED.control_tokens()
    assert [tokenizer.decode([token_id]) for token_id in tokenizer.encode("user the 12")] == [
        "user", " the", " ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode_ordinary("ß😀")) == "ß😀"


def test_long_runs_of_one_kind_of_character_are_cut(repository, tmp_path):
    program = runpy.run_path(str(repository / "trainer/train_tokenizer.py"))
    lines = ["ab" * 2500, "the hat, " * 1000, " " * 4001 + "x", "中" * 1999, ".-" * 1000, "_" * 2001]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    texts = [text for text in program["texts_of"]([tmp_path / "a.jsonl"]) if text not in program["ROLES"]]
    assert "".join(texts) == "".join(lines)
    assert list(map(len, texts)) == [2000, 2000, 1000, 9000, 2000, 2000, 2, 1999, 2000, 2000, 1]


@pytest.mark.parametrize("arguments, message", [
    ((), "error: --data_path: expected one or more files (docs/data.md lists the kinds)"),
    (("--data_path", "none.txt"), "error: --data_path none.txt: no such file"),
    (("--data_path", "README.md"), "error: --data_path README.md: expected a file named *.jsonl, *.ndjson, *.json"),
    (("--data_path", "model"), "error: --data_path model: expected a file, found a folder (model/*.json names the"),
    (("--data_path", os.devnull), f"error: --data_path {os.devnull}: expected a regular file; it is read"),
    (("--vocab_size", "291"), "error: --vocab_size is 291, expected at least 292: the control tokens and"),
])
def test_train_tokenizer_refuses_bad_flags(repository, tmp_path, arguments, message):
    done = train(repository, *arguments, "--save_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_train_tokenizer_refuses_too_little_text(repository, tmp_path):
    (tmp_path / "a.txt").write_text("tiny")
    done = train(repository, "--data_path", tmp_path / "a.txt", "--save_dir", tmp_path / "out")
    assert done.returncode == 2
    # 292 and the merges that make system, user and assistant one token each
    assert done.stderr.splitlines()[-1] == (
        "error: --data_path: the text gives only 307 tokens, --vocab_size is 6400; give more text or --vocab_size 307")
    assert not list((tmp_path / "out").glob("*"))


def tiny_text(folder) -> Path:
    path = folder / "a.txt"
    path.write_text("the cat and the hat and the bat\n" * 20, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_tokenizer_is_replaced_only_on_request_and_kept(repository, tmp_path, name):
    arguments = ["--data_path", tiny_text(tmp_path), "--vocab_size", 300, "--save_dir", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine", encoding="utf-8")
    done = train(repository, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}/out/{name}: exists already; choose another --save_dir, or --overwrite moves it to "
        f"{tmp_path}/out/tokenizer.previous"]
    done = train(repository, *arguments, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert f"overwrite   {tmp_path}/out/{name} moved to {tmp_path}/out/tokenizer.previous" in done.stdout
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "out/tokenizer.previous").iterdir()] == ["mine"]
    assert Tokenizer.from_folder(tmp_path / "out").vocab_size == 300


def test_the_bundled_tokenizer_is_not_overwritten_by_default(repository, tmp_path):
    before = (repository / "model/tokenizer.json").read_bytes()
    done = train(repository, "--data_path", tiny_text(tmp_path), "--vocab_size", 300)
    assert done.returncode == 2 and "model/tokenizer.json: exists already" in done.stderr
    assert (repository / "model/tokenizer.json").read_bytes() == before


def test_a_full_disk_leaves_the_old_tokenizer_complete(repository, tmp_path):
    """The disk has no room for the second of the two files."""
    text, out = tiny_text(tmp_path), tmp_path / "out"
    assert train(repository, "--data_path", text, "--vocab_size", 300, "--save_dir", out).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    smaller = min(map(len, before.values()))
    done = run_without_room(smaller + 100, "trainer/train_tokenizer.py", "--data_path", text, "--vocab_size", 310,
                            "--save_dir", out, "--overwrite")
    assert done.stderr.splitlines() == [f"error: {out}/tokenizer.json: cannot be written (File too large)"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
