"""Reads flags that say whether a turn is learned. A flag is honoured or refused, never ignored."""

import re
from functools import lru_cache
from typing import Any

from minimind_sft.data.turns import SourceTurn
from minimind_sft.errors import UserError

EXPECTED = {
    "train": "true or false",
    "training": "true or false",
    "trainable": "true or false",
    "weight": "0 or 1, as an answer is learned or not",
    "loss_weight": "0 or 1, as an answer is learned or not",
    "loss_scale": "0 or 1, as an answer is learned or not",
    "loss": "true, false, 1 or 0, as an answer is learned or not",
}
"""The flags that are honoured, with the values they may have: false or 0 shows an answer without learning it."""
MULTIPLIERS = ("weight", "loss_weight", "loss_scale")
"""Flags whose 1 asks for nothing: tables often have it in every turn."""
PLAIN_FIELDS = frozenset(["role", "content", "from", "value", "reasoning_content", "tool_calls", "name",
                          "tool_call_id"])
"""Common fields of a turn that are not flags and do not look like flags."""

_FLAG_WORDS = frozenset([
    "backprop", "learn", "learnable", "learned", "loss", "losses", "mask", "masked", "masks", "supervise", "supervised",
    "train", "trainable", "trained", "training", "weight", "weights"])


@lru_cache(1024)
def looks_like_flag(name: str) -> bool:
    """Tells whether a word in a key (`loss_mask`, `trainOnTurn`) is about learning."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return not _FLAG_WORDS.isdisjoint(word.lower() for word in words)


def is_flagged(values: dict[str, Any]) -> bool:
    """Tells whether a turn has a flag."""
    return any(values.get(name) is not None for name in EXPECTED)


def is_learned(turn: SourceTurn) -> bool:
    """Tells by its flags whether an assistant turn is learned; True for the turns of other roles.

    Raises:
        UserError: for a value that a flag cannot have, for flags that contradict each other, for a flag that asks to
            learn a turn of another role, and for a key that looks like a flag but has no clear meaning.
    """
    for name, value in turn.values.items():
        if value is not None and name not in EXPECTED and looks_like_flag(name):
            turn.refuse(name, 'a flag with a clear meaning ("train": false for an answer that should not be learned)',
                        value)
    flags = {name: turn.values[name] for name in EXPECTED if turn.values.get(name) is not None}
    role = turn.values["role"]
    for name, value in flags.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            turn.refuse(name, EXPECTED[name], value)
        if role != "assistant" and value and name not in MULTIPLIERS:
            raise UserError(f"{turn.name(name)}: expected only an assistant turn to be learned, found a {role} turn")
        first = next(iter(flags))
        if bool(value) != bool(flags[first]):
            turn.refuse(name, f"the same as {turn.name(first)}", value)
    return role != "assistant" or all(flags.values())
