"""The dialogue in a real terminal: typing, pasting and interrupting."""

import os
import subprocess
import sys
from importlib.util import find_spec
from threading import Thread
from types import SimpleNamespace

import pytest
from programs import PATIENCE, REPOSITORY
from terminals import Terminal

from minimind_sft.inference.message_history import MessageHistory
from minimind_sft.inference.message_input import PlainInput

PROGRAM = """
import sys, time
from minimind_sft.errors import UserError, run_program
from minimind_sft.inference import message_input
from minimind_sft.inference.commands import Command
from minimind_sft.inference.dialogue import converse
from minimind_sft.inference.message_history import MessageHistory
from minimind_sft.terminal import say

class Parrot:
    starts_thinking, in_use, context = False, None, 100

    def reply(self, message):
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
        if message == "tags":
            yield from ("<think>", "hm <to", "ol", "</thi", "nk>", "so\\x1b[2J<tool_call>", '{"name": "f", ')
            yield from ('"arguments": ', '{"x": "罗马"}}', "</tool_call>")
            return
        yield f"={message!r}="

def clear(_):
    return "cleared"

if "--patient" in sys.argv:
    message_input.PASTE_SECONDS = 3
if "--prompt-toolkit" not in sys.argv:
    sys.modules["prompt_toolkit"] = None
if "--no-readline" in sys.argv:
    sys.modules["readline"] = None
commands = [Command("/clear", "", "start over", clear), Command("/system", "TEXT", "repeat", lambda text: f"<{text}>")]
history = MessageHistory(say if "--history" in sys.argv else None)
run_program(lambda: converse(Parrot(), commands, history, show_speed=False))
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
        wait_for_prompt(opened[-1])
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


NEEDS_READLINE = pytest.mark.skipif(not has_gnu_readline(), reason="no GNU readline here")
NEEDS_PROMPT_TOOLKIT = pytest.mark.skipif(find_spec("prompt_toolkit") is None, reason="prompt-toolkit is not installed")
PROMPT_TOOLKIT = pytest.param(("--prompt-toolkit",), marks=NEEDS_PROMPT_TOOLKIT, id="prompt-toolkit")
READLINE = pytest.param((), marks=NEEDS_READLINE, id="readline")
ALL_INPUTS = pytest.mark.parametrize("arguments", [PROMPT_TOOLKIT, READLINE, pytest.param(("--no-readline",),
                                                                                          id="no readline")])
EDITORS = pytest.mark.parametrize("arguments", [PROMPT_TOOLKIT, READLINE])


def wait_for_prompt(terminal: Terminal) -> str:
    """Waits for the next prompt and returns the output before it."""
    return terminal.wait_for("\x1b[?2004h" if "--prompt-toolkit" in terminal.process.args else "> ")


def wait_for_answer_to(terminal: Terminal, message: str) -> None:
    """Waits for the answer to exactly this message."""
    terminal.wait_for(f"={message!r}=")
    wait_for_prompt(terminal)


@ALL_INPUTS
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


@ALL_INPUTS
def test_an_empty_line_gives_the_next_prompt(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    for nothing in ("\r", "  \r", "\t\r"):
        terminal.type(nothing)
        wait_for_prompt(terminal)
    terminal.type("still here\r")
    wait_for_answer_to(terminal, "still here")


@ALL_INPUTS
def test_slash_commands(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("/help\r")
    shown = wait_for_prompt(terminal)
    for word in ("/clear", "/help", "/exit", "/quit", "Ctrl-D", "Ctrl-C", "pasted"):
        assert word in shown
    assert ("Alt-Enter" in shown) == (arguments != ("--no-readline",))
    assert ("Tab" in shown) == (arguments == ("--prompt-toolkit",))
    terminal.type("/clear\r")
    terminal.wait_for("cleared\r\n")
    terminal.type("/system Be brief.\r")
    terminal.wait_for("<Be brief.>\r\n")
    terminal.type("/claer\r")
    terminal.wait_for("/claer: no such command; did you mean /clear? /help lists all")
    terminal.type(" /claer\r")
    wait_for_answer_to(terminal, " /claer")
    for path in ("/etc/passwd", "/etc is a folder", "/ "):
        terminal.type(f"{path}\r")
        if path == "/ ":
            terminal.wait_for("/: no such command. /help lists all")
        else:
            wait_for_answer_to(terminal, path)
    terminal.type("/exit \r")
    assert terminal.end() == 0


@ALL_INPUTS
def test_quit_ends_the_dialogue(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("/quit\r")
    assert terminal.end() == 0


@ALL_INPUTS
def test_a_refused_message_is_one_line_and_the_dialogue_continues(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("refuse\r")
    terminal.wait_for("not sent: the chat template refuses \\u001b[31mthis\r\n")
    wait_for_prompt(terminal)
    take_as_is = b"\x11" if "--prompt-toolkit" in arguments else b"\x16"  # Ctrl-Q or Ctrl-V
    terminal.type(take_as_is + b"\x01\r")
    terminal.wait_for("not sent: expected text, found the control character U+0001 at character 1\r\n")
    wait_for_prompt(terminal)
    terminal.type("hello\r")
    wait_for_answer_to(terminal, "hello")


def test_half_a_character_is_refused_in_one_line(open_terminal):
    # Backspace in a terminal that does not know UTF-8 takes a byte away, not a character.
    terminal = open_terminal("--no-readline")
    terminal.type("你".encode()[:2] + b"\r")
    terminal.wait_for("not sent: no text\r\n")
    wait_for_prompt(terminal)
    terminal.type("你好\r")
    wait_for_answer_to(terminal, "你好")


@EDITORS
@pytest.mark.parametrize("language", ["C.UTF-8", "", "C"])
def test_chinese_is_edited_and_earlier_messages_are_recalled(open_terminal, monkeypatch, language, arguments):
    for name in ("LANG", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    terminal = open_terminal(*arguments, LC_ALL=language)
    terminal.type("你好\x7f们\r")
    wait_for_answer_to(terminal, "你们")
    terminal.type("\x1b[A\r")
    wait_for_answer_to(terminal, "你们")
    terminal.type("first\x1b\rsecond\r")  # Alt-Enter
    wait_for_answer_to(terminal, "first\nsecond")


@EDITORS
def test_messages_of_an_earlier_chat_are_recalled(open_terminal, tmp_path, arguments):
    for recalled in (None, "第一条\n第二行"):
        terminal = open_terminal(*arguments, "--history", XDG_STATE_HOME=str(tmp_path))
        if recalled is None:
            terminal.type("第一条\x1b\r第二行\r")
        else:
            terminal.type("\x1b[A" if "--prompt-toolkit" in arguments else "\x10")  # up, or Ctrl-P
            terminal.type("\r")
        wait_for_answer_to(terminal, "第一条\n第二行")
        terminal.type("\x04")
        assert terminal.end() == 0


@NEEDS_PROMPT_TOOLKIT
def test_tab_completes_commands_and_nothing_else(open_terminal, tmp_path):
    terminal = open_terminal("--prompt-toolkit")
    terminal.type("/sy\t")
    terminal.type("x\r")
    terminal.wait_for("/systemx: no such command; did you mean /system?")
    wait_for_prompt(terminal)
    terminal.type("a\tb\r")
    wait_for_answer_to(terminal, "a\tb")


IN_COLOUR = "\x1b[2mhm <tool\x1b[0mso\\u001b[2J\x1b[36m<tool_call>"
PLAIN = "<think>hm <tool</think>so\\u001b[2J<tool_call>"


@pytest.mark.parametrize(("environment", "shown"), [
    ({"NO_COLOR": ""}, IN_COLOUR), ({"NO_COLOR": "1"}, PLAIN), ({"TERM": "dumb"}, PLAIN)])
def test_reasoning_is_dim_where_the_terminal_has_colours_and_calls_are_told(open_terminal, environment, shown):
    terminal = open_terminal(**environment)
    terminal.type("tags\r")
    answer = wait_for_prompt(terminal)
    if "\x1b[2mhm" in answer:  # the pieces are coloured one by one
        answer = answer.replace("\x1b[0m\x1b[2m", "").replace("\x1b[0m\x1b[36m", "")
    assert shown in answer
    assert ("\x1b" in answer) == (environment.get("TERM") != "dumb")  # readline asks to mark pasted text
    assert "\x1b[2J" not in answer and '→ f(x="罗马")' in answer


BLOCK = "def f(x):\n\n    return x  # 返回\n/exit\n\n"


@EDITORS
@pytest.mark.parametrize("columns", [80, 40])
def test_a_bracketed_paste_is_one_message(open_terminal, columns, arguments):
    terminal = open_terminal(*arguments, columns=columns)
    terminal.paste(BLOCK)
    terminal.type("\r")
    wait_for_answer_to(terminal, "def f(x):\n\n    return x  # 返回\n/exit")


@ALL_INPUTS
def test_lines_that_arrive_together_are_one_message(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type(BLOCK.replace("\n", "\r"))
    wait_for_answer_to(terminal, "def f(x):\n\n    return x  # 返回\n/exit")
    terminal.type("one\rtwo")  # the last line waits for its Enter
    terminal.wait_for("two")
    terminal.type("\r")
    wait_for_answer_to(terminal, "one\ntwo")


@ALL_INPUTS
def test_a_long_block_arrives_whole(open_terminal, arguments):
    block = "".join(f"line {number} 这是第{number}行 /exit\n" for number in range(300))
    terminal = open_terminal(*arguments, "--patient")  # the thread below may be slow on a busy machine
    typed = Thread(target=terminal.type, args=[block.replace("\n", "\r")])  # more than the terminal holds at once
    typed.start()
    wait_for_answer_to(terminal, block.rstrip("\n"))
    typed.join()


@ALL_INPUTS
def test_text_typed_ahead_does_not_reach_the_shell(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("slow\r")
    terminal.wait_for("begun")
    terminal.type("rm -rf precious\r")
    terminal.wait_for("precious\r\n")
    terminal.process.terminate()
    assert terminal.end() == 143
    assert terminal.unread() == b""


@ALL_INPUTS
def test_ctrl_c_drops_the_line_and_says_how_to_leave(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("half a mess")
    terminal.wait_for("half a mess")
    terminal.interrupt()
    terminal.wait_for("Press Ctrl-C again, Ctrl-D, or type /exit to leave.\r\n")
    wait_for_prompt(terminal)
    terminal.type("hello\r")
    wait_for_answer_to(terminal, "hello")
    terminal.interrupt()
    terminal.wait_for("to leave.\r\n")
    wait_for_prompt(terminal)
    terminal.interrupt()
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown


@ALL_INPUTS
def test_ctrl_c_interrupts_an_answer(open_terminal, arguments):
    terminal = open_terminal(*arguments)
    terminal.type("slow\r")
    terminal.wait_for("begun")
    terminal.type("\x03")
    terminal.wait_for("[cut short, not kept]")
    wait_for_prompt(terminal)
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
    assert PlainInput(MessageHistory()).read() == "first\nsecond\nthird"
