"""The file of typed messages: kept for the next chat, for its owner alone, and never through a link."""

import json
import os
import stat
from pathlib import Path

import pytest

from minimind_sft.inference import message_history
from minimind_sft.inference.message_history import MessageHistory, history_path


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keeps the history under the test's folder; returns what it says."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return []


def no_home() -> Path:
    raise RuntimeError("no home")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_messages_are_kept_for_the_next_chat_and_for_their_owner_alone(said):
    first = MessageHistory(said.append)
    for message in ("hello", "hello", "", "  ", "两行\n第二行", "x" * 20_001):
        first.add(message)
    assert MessageHistory(said.append).messages == ["hello", "两行\n第二行"]
    assert mode(history_path()) == 0o600 and mode(history_path().parent) == 0o700
    assert said == []


def test_a_file_that_others_could_read_is_closed_to_them(said):
    MessageHistory(said.append).add("secret")
    history_path().chmod(0o644)
    assert MessageHistory(said.append).messages == ["secret"]
    assert mode(history_path()) == 0o600


@pytest.mark.parametrize("target", ["own", "missing", os.devnull])
def test_a_link_is_not_followed(said, tmp_path, target):
    (tmp_path / "own").write_text('"precious"\n')
    path = history_path()
    path.parent.mkdir()
    path.symlink_to(tmp_path / target)
    history = MessageHistory(said.append)
    history.add("hello")
    (line,) = said
    assert line.startswith(f"typed messages are not kept for the next chat: {path}")
    assert history.messages == ["hello"] and (tmp_path / "own").read_text() == '"precious"\n'
    assert not (tmp_path / "missing").exists()


def test_lines_that_are_no_message_are_left_out(said):
    MessageHistory(said.append).add("hello")
    lines = ["[" * 100_000, "1" * 5_000, "{}", "5", "null", '"torn']
    with history_path().open("a") as file:
        file.write("\n".join(lines))
    assert MessageHistory(said.append).messages == ["hello"] and said == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_stop_the_chat(said):
    history_path().parent.mkdir()
    os.mkfifo(history_path())
    MessageHistory(said.append).add("hello")
    assert said == [f"typed messages are not kept for the next chat: {history_path()} not a file of your own"]


def test_a_place_that_cannot_be_written_costs_one_line(tmp_path, said, monkeypatch):
    (tmp_path / "minimind_sft").write_text("a file")
    MessageHistory(said.append).add("hello")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    MessageHistory(said.append).add("hello")
    assert [line[:46] for line in said] == ["typed messages are not kept for the next chat:"] * 2


def test_lines_that_are_no_messages_are_passed_over(said):
    MessageHistory(said.append).add("first")
    with history_path().open("ab") as file:
        file.write(b'{"a": 1}\n\xff\n\n"cut off')
    assert MessageHistory(said.append).messages == ["first"]


def test_a_long_file_is_shortened(said, monkeypatch):
    monkeypatch.setattr(message_history, "MAX_MESSAGES", 3)
    history = MessageHistory(said.append)
    for number in range(7):
        history.add(f"message {number}")
    kept = ["message 4", "message 5", "message 6"]
    assert MessageHistory(said.append).messages == kept
    assert [json.loads(line) for line in history_path().read_text().splitlines()] == kept
    assert mode(history_path()) == 0o600 and len(list(history_path().parent.iterdir())) == 1


def test_without_a_file_messages_stay_in_memory(said):
    history = MessageHistory()
    history.add("hello")
    assert history.messages == ["hello"] and not history_path().exists()
