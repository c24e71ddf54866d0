"""Runs the chat in the terminal: reads messages, obeys commands, shows answers while they are generated."""

import io
import locale
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from minimind_sft.errors import UserError, harmless
from minimind_sft.terminal import say

PROMPT = "> "
PASTE_SECONDS = 0.05
"""Lines that arrive within this time of each other are one pasted block: nobody types that fast."""

HELP = """\
/clear   forget the conversation so far
/help    show this list
/exit    end the chat (/quit, Ctrl-D)
Ctrl-C   stop an answer, drop a message
A pasted block is one message.
"""
NEW_LINE_HELP = "Alt-Enter starts a new line.\n"
COMMANDS = ("/clear", "/help", "/exit", "/quit")

UTF8_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")
"""Its names on various systems, without a language."""

# Everything below the space except tab and line feed, then DEL and the control characters of ISO 8859.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def converse(answer: Callable[[str], Iterator[str]], clear: Callable[[], None], show_speed: bool) -> None:
    """Answers typed messages until /exit, Ctrl-D, or Ctrl-C twice. A message that is refused costs one line.

    A message is a typed line or a pasted block. A message of one word that starts with a slash is a command.

    Args:
        answer: yields the pieces of an answer, or raises `UserError` before the first.
        clear: forgets the conversation.
    """
    if sys.stdin is None:
        raise UserError("there is no standard input to read messages from; --prompt takes them from the command line")
    can_break_lines = _prepare_input()
    interrupted = False
    try:
        while True:
            try:
                message = read_message()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if interrupted:
                    return
                interrupted = True
                say("Press Ctrl-C again, Ctrl-D, or type /exit to leave.")
                continue
            interrupted = False
            command = message.rstrip()
            if command in ("/exit", "/quit"):
                return
            if command == "/clear":
                clear()
                say("The conversation starts over.\n")
            elif command == "/help":
                say(HELP + NEW_LINE_HELP * can_break_lines)
            elif re.fullmatch("/[A-Za-z]*", command):
                say(f"{command}: no such command, expected {', '.join(COMMANDS)}; put a blank in front to send it\n")
            elif command:
                _answer(answer, message, show_speed)
    finally:
        _discard_input()


def read_message() -> str:
    """Reads one message: a line, and at a terminal all lines that follow at once, because they were pasted with it.

    Raises:
        EOFError: for Ctrl-D.
        KeyboardInterrupt: for Ctrl-C.
    """
    lines = [input(PROMPT)]
    while _more_is_waiting():
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines).rstrip("\r\n")


def show(pieces: Iterator[str], show_speed: bool) -> None:
    """Prints an answer while it is generated; Ctrl-C stops it."""
    start, tokens = time.perf_counter(), 0
    at_terminal = sys.stdout.isatty()
    try:
        for piece in pieces:
            tokens += 1
            print(visible(piece) if at_terminal else piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" ... [cut short, not kept]", end="")
    elapsed = time.perf_counter() - start
    print(f"\n[{tokens} tokens, {tokens / elapsed:.0f} tokens/s]\n" if show_speed else "\n")


def visible(text: str) -> str:
    """Replaces control characters with visible symbols: a model must not move the cursor."""
    return CONTROL_CHARACTERS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def _answer(answer: Callable[[str], Iterator[str]], message: str, show_speed: bool) -> None:
    try:
        if found := CONTROL_CHARACTERS.search(message):
            raise UserError(f"expected text, found the control character U+{ord(found[0]):04X} at character "
                            f"{found.start() + 1}")
        show(answer(message), show_speed)
    except UserError as error:
        say(f"not sent: {harmless(str(error))}\n")


def _prepare_input() -> bool:
    """Prepares standard input, and returns whether a message can have several lines.

    Bytes that are not text arrive as lone surrogates, which are refused later; reading does not stop. At a terminal
    `input` edits lines with readline, if Python has it.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        return False
    _use_utf8_locale()
    try:
        import readline  # Windows has none; its console edits lines itself
    except ImportError:
        return False
    if "libedit" in (readline.__doc__ or ""):  # has no bracketed paste
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter inserts a line feed
    return True


def _use_utf8_locale() -> None:
    """Sets a UTF-8 locale. Under LC_ALL=C Python still reads UTF-8, but readline takes the bytes of 你 for commands."""
    if sys.stdin.encoding.lower() != "utf-8" or sys.platform == "win32":
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


def _discard_input() -> None:
    """Drops what was pasted or typed ahead, so that the shell does not run it."""
    try:
        import termios
    except ImportError:  # Windows
        return
    if sys.stdin.isatty():
        with suppress(termios.error):  # the terminal was closed
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
