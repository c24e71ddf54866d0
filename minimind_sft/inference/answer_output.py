"""Shows an answer in the terminal while it is generated."""

import re
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from minimind_sft.inference.answer_parts import answer_parts, described_calls
from minimind_sft.terminal import can_colour, counted, harmless, painted, say, say_painted, say_piece

STYLES = {"thinking": "2", "call": "36", "note": "2"}
"""ANSI codes: dim, cyan, dim."""

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

    def tallied() -> Iterator[str]:
        nonlocal tokens
        for piece in pieces:
            tokens += 1
            yield piece

    try:
        for part in answer_parts(tallied(), lambda: answerer.starts_thinking):
            calls += part.text * (part.kind == "call")
            if not (part.kind == "thinking" and part.is_tag and in_colour):
                say_piece(part.text, STYLES.get(part.kind, "") if in_colour else "")
    except KeyboardInterrupt:
        say_piece(" ... [cut short, not kept]")
    elapsed = time.perf_counter() - start
    say("")
    if at_terminal:
        for described in described_calls(calls):
            say_painted(_painted("call", f"→ {described}", in_colour))
    if show_speed:
        rate = f"{counted(tokens, 'token')}, {tokens / elapsed:.0f} tokens/s"
        use = "" if answerer.in_use is None else f", context {answerer.in_use:,} of {answerer.context:,}"
        say_painted(_painted("note", f"[{rate}{use}]", in_colour))
    say("")


def _painted(style: str, text: str, in_colour: bool) -> str:
    return painted(STYLES[style], text) if in_colour else harmless(text)
