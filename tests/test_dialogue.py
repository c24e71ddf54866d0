"""The dialogue in a real terminal: typing, pasting and interrupting."""

import os
import subprocess
import sys
from threading import Thread
from types import SimpleNamespace

import pytest
from programs import PATIENCE, REPOSITORY
from terminals import Terminal

from minimind_sft.inference import dialogue

PROGRAM = """
import sys, time
from minimind_sft.errors import UserError, run_program
from minimind_sft.inference import dialogue

def answer(message):
    try:
        message.encode()
    except UnicodeEncodeError as error:
        raise UserError("no text") from error
    if message == "refuse":
        raise UserError("the chat template refuses \\x1b[31mthis")
    if message == "slow":
        yield "begun"
        while True:
            time.sleep(0.1)
            yield ""
    yield f"={message!r}="

if "--patient" in sys.argv:
    dialogue.PASTE_SECONDS = 3
if "--no-readline" in sys.argv:
    sys.modules["readline"] = None
run_program(lambda: dialogue.converse(answer, lambda: print("cleared"), show_speed=False))
"""
PYTHON = [sys.executable, "-c", PROGRAM]


def has_gnu_readline() -> bool:
    try:
        import readline
    except ImportError:
        return False
    return "libedit" not in readline.__doc__


@pytest.fixture
def open_terminal(monkeypatch):
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    opened = []

    def start(*arguments: str, **options) -> Terminal:
        opened.append(Terminal([*PYTHON, *arguments], **options))
        opened[-1].wait_for("> ")
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


WITH_AND_WITHOUT_READLINE = pytest.mark.parametrize(
    "arguments", [pytest.param((), marks=pytest.mark.skipif(not has_gnu_readline(), reason="no GNU readline here")),
                  ("--no-readline",)], ids=["readline", "no readline"])


def wait_for_answer_to(terminal: Terminal, message: str) -> None:
    """Waits for the answer to exactly this message."""
    terminal.wait_for(f"={message!r}=")
    terminal.wait_for("> ")


@WITH_AND_WITHOUT_READLINE
@pytest.mark.parametrize("columns", [80, 40])
def test_messages_are_answered_until_ctrl_d(open_terminal, arguments, columns):
    terminal = open_terminal(*arguments, columns=columns)
    terminal.type("hello\r")
    wait_for_answer_to(terminal, "hello")
    terminal.type("你好\r")
    wait_for_answer_to(terminal, "你好")
    terminal.type("a long message " * 10 + "end\r")
    wait_for_answer_to(terminal, "a long message " * 10 + "end")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown


@WITH_AND_WITHOUT_READLINE
def test_an_empty_line_gives_the_next_prompt(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    for nothing in ("\r", "  \r", "\t\r"):
        terminal.type(nothing)
        terminal.wait_for("> ")
    terminal.type("still here\r")
    wait_for_answer_to(terminal, "still here")


@WITH_AND_WITHOUT_READLINE
def test_slash_commands(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("/help\r")
    shown = terminal.wait_for("> ")
    for word in ("/clear", "/help", "/exit", "/quit", "Ctrl-D", "Ctrl-C", "pasted"):
        assert word in shown
    assert ("Alt-Enter" in shown) == (not arguments)
    assert max(map(len, shown.splitlines())) <= 40
    terminal.type("/clear\r")
    terminal.wait_for("cleared")
    terminal.type("/claer\r")
    terminal.wait_for("/claer: no such command, expected /clear, /help, /exit, /quit; put a blank")
    terminal.type(" /claer\r")
    wait_for_answer_to(terminal, " /claer")
    for path in ("/etc/passwd", "/etc is a folder", "/ "):
        terminal.type(f"{path}\r")
        if path == "/ ":
            terminal.wait_for("/: no such command")
        else:
            wait_for_answer_to(terminal, path)
    terminal.type("/exit \r")
    assert terminal.end() == 0


@WITH_AND_WITHOUT_READLINE
def test_quit_ends_the_dialogue(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("/quit\r")
    assert terminal.end() == 0


@WITH_AND_WITHOUT_READLINE
def test_a_refused_message_is_one_line_and_the_dialogue_continues(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("refuse\r")
    terminal.wait_for("not sent: the chat template refuses \\u001b[31mthis\r\n")
    terminal.wait_for("> ")
    terminal.type(b"\x16\x01\r")  # Ctrl-V takes the next key as it is
    terminal.wait_for("not sent: expected text, found the control character U+0001 at character 1\r\n")
    terminal.wait_for("> ")
    terminal.type("hello\r")
    wait_for_answer_to(terminal, "hello")


def test_half_a_character_is_refused_in_one_line(open_terminal):
    # Backspace in a terminal that does not know UTF-8 takes a byte away, not a character.
    terminal = open_terminal("--no-readline")
    terminal.type("你".encode()[:2] + b"\r")
    terminal.wait_for("not sent: no text\r\n")
    terminal.wait_for("> ")
    terminal.type("你好\r")
    wait_for_answer_to(terminal, "你好")


@pytest.mark.skipif(not has_gnu_readline(), reason="no GNU readline here")
@pytest.mark.parametrize("language", ["C.UTF-8", "", "C"])
def test_readline_edits_chinese_and_has_a_history(open_terminal, monkeypatch, language):
    for name in ("LANG", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    terminal = open_terminal(LC_ALL=language)
    terminal.type("你好\x7f们\r")
    wait_for_answer_to(terminal, "你们")
    terminal.type("\x1b[A\r")
    wait_for_answer_to(terminal, "你们")
    terminal.type("first\x1b\rsecond\r")  # Alt-Enter
    wait_for_answer_to(terminal, "first\nsecond")


BLOCK = "def f(x):\n\n    return x  # 返回\n/exit\n\n"


@pytest.mark.skipif(not has_gnu_readline(), reason="no GNU readline here")
@pytest.mark.parametrize("columns", [80, 40])
def test_a_bracketed_paste_is_one_message(open_terminal, columns):
    terminal = open_terminal(columns=columns)
    terminal.paste(BLOCK)
    terminal.type("\r")
    wait_for_answer_to(terminal, "def f(x):\n\n    return x  # 返回\n/exit")


@WITH_AND_WITHOUT_READLINE
def test_lines_that_arrive_together_are_one_message(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type(BLOCK.replace("\n", "\r"))
    wait_for_answer_to(terminal, "def f(x):\n\n    return x  # 返回\n/exit")
    terminal.type("one\rtwo")  # the last line waits for its Enter
    terminal.wait_for("two")
    terminal.type("\r")
    wait_for_answer_to(terminal, "one\ntwo")


@WITH_AND_WITHOUT_READLINE
def test_a_long_block_arrives_whole(open_terminal, arguments):
    block = "".join(f"line {number} 这是第{number}行 /exit\n" for number in range(300))
    terminal = open_terminal(*arguments, "--patient")  # the thread below may be slow on a busy machine
    typed = Thread(target=terminal.type, args=[block.replace("\n", "\r")])  # more than the terminal holds at once
    typed.start()
    wait_for_answer_to(terminal, block.rstrip("\n"))
    typed.join()


@WITH_AND_WITHOUT_READLINE
def test_text_typed_ahead_does_not_reach_the_shell(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("slow\r")
    terminal.wait_for("begun")
    terminal.type("rm -rf precious\r")
    terminal.wait_for("precious\r\n")
    terminal.process.terminate()
    assert terminal.end() == 143
    assert terminal.unread() == b""


@WITH_AND_WITHOUT_READLINE
def test_ctrl_c_drops_the_line_and_says_how_to_leave(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("half a mess")
    terminal.wait_for("half a mess")
    terminal.interrupt()
    terminal.wait_for("Press Ctrl-C again, Ctrl-D, or type /exit to leave.\r\n")
    terminal.wait_for("> ")
    terminal.type("hello\r")
    wait_for_answer_to(terminal, "hello")
    terminal.interrupt()
    terminal.wait_for("to leave.\r\n")
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown


@WITH_AND_WITHOUT_READLINE
def test_ctrl_c_interrupts_an_answer(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("slow\r")
    terminal.wait_for("begun")
    terminal.type("\x03")
    terminal.wait_for("[cut short, not kept]")
    terminal.wait_for("> ")
    terminal.type("hello\r")
    wait_for_answer_to(terminal, "hello")


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "ascii"])
def test_lines_of_a_pipe_are_messages_and_bad_bytes_are_one_error_line(encoding):
    typed = b"one\n\xff\n\n/help me\r\ntwo"
    done = subprocess.run(PYTHON, input=typed, capture_output=True, timeout=PATIENCE, cwd=REPOSITORY,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    lines = [line.lstrip("> ") for line in done.stdout.decode(encoding).splitlines()]
    assert [line for line in lines if line.startswith("=")] == ["='one'=", "='/help me'=", "='two'="]
    assert lines.count("not sent: no text") == 1


def test_missing_standard_input_is_reported_in_one_line():
    done = subprocess.run(f'"{sys.executable}" -c "$PROGRAM" <&-', shell=True, capture_output=True, text=True,
                          timeout=PATIENCE, cwd=REPOSITORY,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PROGRAM": PROGRAM})
    assert done.returncode == 2
    assert done.stderr == ("error: there is no standard input to read messages from; --prompt takes them from the "
                           "command line\n")


def test_on_windows_the_rest_of_a_pasted_block_is_read_from_the_console(monkeypatch):
    waiting = ["first", "second", "third"]
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(kbhit=lambda: bool(waiting)))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt="": waiting.pop(0))
    assert dialogue.read_message() == "first\nsecond\nthird"


def test_control_characters_in_an_answer_are_made_visible():
    assert dialogue.visible("a\x1b[2J\tb\nc\x7f\x85 你") == "a␛[2J\tb\nc\ufffd\ufffd 你"
