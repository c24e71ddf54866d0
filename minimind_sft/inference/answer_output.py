"""Shows an answer in the terminal while it is generated."""

import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from minimind_sft.inference.answer_parts import Part, answer_parts, described_calls
from minimind_sft.terminal import fitted

STYLES = {"thinking": "2", "call": "36", "note": "2"}
"""ANSI codes: dim, cyan, dim."""
DUMB_TERMINALS = ("", "dumb", "unknown")

# Everything below the space except tab and line feed, then DEL and the control characters of ISO 8859.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Answerer(Protocol):
    """A model in a conversation, or one that continues text.

    starts_thinking: whether the last prompt opened the reasoning.
    in_use: tokens of the context that the last prompt and its answer took, if that is known.
    """

    starts_thinking: bool
    in_use: int | None

    @property
    def context(self) -> int:
        """Tokens that the model can take in at most."""

    def reply(self, message: str) -> Iterator[str]:
        """Yields the pieces of an answer, one per token, or raises `UserError` before the first."""


def show(answerer: Answerer, pieces: Iterator[str], show_speed: bool) -> None:
    """Prints an answer while it is generated; Ctrl-C stops it.

    At a terminal with colours, reasoning is dim and its tags are left out, and calls are coloured. At any terminal a
    line after the answer says what each call calls.
    """
    start, tokens = time.perf_counter(), 0
    at_terminal, in_colour = sys.stdout.isatty(), can_colour()
    calls = ""

    def counted() -> Iterator[str]:
        nonlocal tokens
        for piece in pieces:
            tokens += 1
            yield piece

    try:
        for part in answer_parts(counted(), lambda: answerer.starts_thinking):
            calls += part.text * (part.kind == "call")
            print(_at_terminal(part, in_colour) if at_terminal else part.text, end="", flush=True)
    except KeyboardInterrupt:
        print(" ... [cut short, not kept]", end="")
    elapsed = time.perf_counter() - start
    print()
    if at_terminal:
        for described in described_calls(calls):
            print(_painted("call", fitted(visible(f"→ {described}"), sys.stdout), in_colour))
    if show_speed:
        rate = f"{tokens} token{'s' * (tokens != 1)}, {tokens / elapsed:.0f} tokens/s"
        use = "" if answerer.in_use is None else f", context {answerer.in_use:,} of {answerer.context:,}"
        print(_painted("note", fitted(f"[{rate}{use}]", sys.stdout), in_colour))
    print()


def visible(text: str) -> str:
    """Replaces control characters with visible symbols: a model must not move the cursor."""
    return CONTROL_CHARACTERS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def can_colour() -> bool:
    """Says whether standard output is a terminal that shows colours, and the user wants them."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return False
    if sys.platform == "win32":
        return "WT_SESSION" in os.environ  # older consoles print the codes
    return os.environ.get("TERM", "").lower() not in DUMB_TERMINALS


def _at_terminal(part: Part, in_colour: bool) -> str:
    if part.kind == "thinking" and part.is_tag and in_colour:
        return ""
    return _painted(part.kind, visible(part.text), in_colour)


def _painted(style: str, text: str, in_colour: bool) -> str:
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if in_colour and text and style in STYLES else text
