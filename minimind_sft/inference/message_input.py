"""Reads messages in the terminal: typed lines, pasted blocks, and messages of several lines."""

import io
import locale
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from minimind_sft.errors import UserError
from minimind_sft.inference.message_history import MessageHistory
from minimind_sft.terminal import DUMB_TERMINALS

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.key_binding import KeyPressEvent

PROMPT = "> "
PASTE_SECONDS = 0.05
"""Lines that arrive within this time of each other are one pasted block: nobody types that fast."""

TAKES_FILE = re.compile(r"/(?:save|load)\s+")
UTF8_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")
"""Its names on various systems, without a language."""


class MessageInput(Protocol):
    """Where messages come from.

    can_break_lines: whether Alt-Enter starts a new line.
    can_complete: whether Tab completes commands.
    """

    can_break_lines: bool
    can_complete: bool

    def read(self) -> str:
        """Reads one message: a typed line or a pasted block.

        Raises:
            EOFError: for Ctrl-D, and at the end of a pipe.
            KeyboardInterrupt: for Ctrl-C.
        """


def open_input(commands: Sequence[str], history: MessageHistory) -> MessageInput:
    """Prepares standard input, with prompt-toolkit at a terminal if it is installed.

    Bytes that are not text arrive as lone surrogates, which are refused later; reading does not stop.

    Args:
        commands: the words that Tab completes.

    Raises:
        UserError: if there is no standard input.
    """
    if sys.stdin is None:
        raise UserError("there is no standard input to read messages from; --prompt takes them from the command line")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if _can_edit():
        with suppress(ImportError):
            return PromptInput(commands, history)
    return PlainInput(history)


class PlainInput:
    """Reads with `input`, which edits lines with readline if Python has it."""

    can_complete = False

    def __init__(self, history: MessageHistory):
        self.history = history
        self.can_break_lines = _prepare_readline(history)

    def read(self) -> str:
        """Reads a line, and at a terminal all lines that follow at once, because they were pasted with it."""
        lines = [input(PROMPT)]
        while _more_is_waiting():
            try:
                lines.append(input())
            except EOFError:
                break
        message = "\n".join(lines).rstrip("\r\n")
        if sys.stdin.isatty():
            self.history.add(message)
        return message


class PromptInput:
    """Reads with prompt-toolkit: several lines that can be edited, history, and completion.

    Raises:
        ImportError: if it is not installed.
    """

    can_break_lines = can_complete = True

    def __init__(self, commands: Sequence[str], history: MessageHistory):
        self.session = _session(commands, history)
        self.history = history

    def read(self) -> str:
        """Reads one message. Enter sends it; within a pasted block it is a line end."""
        message = self.session.prompt(PROMPT).rstrip("\r\n")
        self.history.add(message)
        return message


def discard_input() -> None:
    """Drops what was pasted or typed ahead, so that the shell does not run it."""
    try:
        import termios
    except ImportError:  # Windows
        return
    if sys.stdin.isatty():
        with suppress(termios.error):  # the terminal was closed
            termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _can_edit() -> bool:
    """Says whether this is a terminal in which the cursor can move."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return sys.platform == "win32" or os.environ.get("TERM", "").lower() not in DUMB_TERMINALS


def _session(commands: Sequence[str], history: MessageHistory) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.layout.processors import TabsProcessor
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: "KeyPressEvent") -> None:
        if event.key_processor.input_queue or _more_is_waiting():  # a pasted block that the terminal did not mark
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab", filter=Condition(lambda: not session.default_buffer.text.startswith("/")))
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\t")

    output = create_output(stdout=sys.stdout)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False  # its answer may arrive among what is typed, or after the chat has ended
    session: PromptSession[str] = PromptSession(
        multiline=True, key_bindings=keys, output=output, history=InMemoryHistory(history.messages),
        completer=_completer(commands), complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE,
        prompt_continuation=" " * len(PROMPT), input_processors=[TabsProcessor(char1=" ", char2=" ")])
    return session


def _completer(commands: Sequence[str]) -> "Completer":
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class CommandCompleter(Completer):
        """Completes commands, and the file of /save and /load."""

        def get_completions(self, document: Document, event: "CompleteEvent") -> "Iterator[Completion]":
            typed = document.text_before_cursor
            if found := TAKES_FILE.match(typed):
                rest = Document(typed[found.end():])
                yield from PathCompleter(expanduser=True).get_completions(rest, event)
            yield from (Completion(command, -len(typed)) for command in commands if command.startswith(typed))

    return CommandCompleter()


def _prepare_readline(history: MessageHistory) -> bool:
    """Prepares readline at a terminal, and returns whether a message can have several lines."""
    if not sys.stdin.isatty():
        return False
    _use_utf8_locale()
    try:
        import readline  # Windows has none; its console edits lines itself
    except ImportError:
        return False
    for message in history.messages:
        readline.add_history(message)
    if "libedit" in (readline.__doc__ or ""):  # has no bracketed paste
        return False
    marks_pastes = os.environ.get("TERM", "").lower() not in DUMB_TERMINALS
    readline.parse_and_bind(f"set enable-bracketed-paste {'on' if marks_pastes else 'off'}")
    readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter inserts a line feed
    return True


def _use_utf8_locale() -> None:
    """Sets a UTF-8 locale. Under LC_ALL=C Python still reads UTF-8, but readline takes the bytes of 你 for commands."""
    if sys.platform == "win32" or sys.stdin.encoding.lower() != "utf-8":
        return
    for name in ("", *UTF8_LOCALES):
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            if locale.nl_langinfo(locale.CODESET).upper() == "UTF-8":
                if name:
                    os.environ["LC_ALL"] = name  # readline looks there
                return


def _more_is_waiting() -> bool:
    if not sys.stdin.isatty():
        return False
    if sys.platform == "win32":
        import msvcrt

        time.sleep(PASTE_SECONDS)
        return msvcrt.kbhit()
    return bool(select.select([sys.stdin], [], [], PASTE_SECONDS)[0])
