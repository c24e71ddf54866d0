"""The dialogue at the terminal: reads messages, obeys commands, shows answers while they are made."""

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
"""Lines that arrive within this time of each other are one pasted block: nobody types as fast."""

HELP = """\
/clear   forget the conversation so far
/help    show this list
/exit    end the chat (/quit, Ctrl-D)
Ctrl-C   cut an answer, drop a message
A pasted block is one message.
"""
NEW_LINE_HELP = "Alt-Enter begins a new line.\n"
COMMANDS = ("/clear", "/help", "/exit", "/quit")

UTF8_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")
"""The names that systems have for it, where no language is meant."""

# Everything below the space but the tab and the line's end, and what ISO 8859 has beside them.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def converse(answer: Callable[[str], Iterator[str]], clear: Callable[[], None], show_speed: bool) -> None:
    """Answers typed messages until /exit, Ctrl-D, or Ctrl-C twice; a message that is refused costs one line.

    A message is what is typed up to Enter, or a block that is pasted at once. A message of one word that begins with a
    slash is a command.

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
                say("Ctrl-C again, Ctrl-D or /exit to leave.")
                continue
            interrupted = False
            command = message.rstrip()
            if command in ("/exit", "/quit"):
                return
            if command == "/clear":
                clear()
                say("The conversation starts anew.\n")
            elif command == "/help":
                say(HELP + NEW_LINE_HELP * can_break_lines)
            elif re.fullmatch("/[A-Za-z]*", command):
                say(f"{command}: no such command, expected {', '.join(COMMANDS)}; a blank in front sends it\n")
            elif command:
                _answer(answer, message, show_speed)
    finally:
        _discard_input()


def read_message() -> str:
    """Reads one message: a line, and at a terminal the lines that follow at once, for they were pasted with it.

    Raises:
        EOFError, KeyboardInterrupt: for Ctrl-D and Ctrl-C.
    """
    lines = [input(PROMPT)]
    while _more_is_waiting():
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines).rstrip("\r\n")


def show(pieces: Iterator[str], show_speed: bool) -> None:
    """Prints an answer while it is made; Ctrl-C cuts it short."""
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
    """Text with pictures of control characters in their place: a model must not move the cursor."""
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
    """Bytes that are no text arrive as lone surrogates, which whoever answers refuses, instead of ending the reading.
    At a terminal `input` edits lines, where Python has readline: returns whether a message can have several."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        return False
    _use_utf8_locale()
    try:
        import readline  # not on Windows, whose console edits lines itself
    except ImportError:
        return False
    if "libedit" in (readline.__doc__ or ""):  # it knows no bracketed paste
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter inserts a line's end
    return True


def _use_utf8_locale() -> None:
    """Under LC_ALL=C Python reads UTF-8 all the same, but readline would take the bytes of 你 for three commands."""
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
    """Drops what was pasted or typed ahead: it is not for the shell."""
    try:
        import termios
    except ImportError:  # Windows
        return
    if sys.stdin.isatty():
        with suppress(termios.error):  # the terminal was closed
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
