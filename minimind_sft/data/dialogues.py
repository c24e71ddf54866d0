"""Reads a dialogue written as one text, `Human: ... Assistant: ...`, as in Anthropic's hh-rlhf."""

import re

from minimind_sft.data.fields import DECISIVE_FIELDS
from minimind_sft.data.turns import refuse
from minimind_sft.errors import UserError

ROLES = {"Human": "user", "Assistant": "assistant"}
_MARKER = re.compile(r"^(Human|Assistant):", re.MULTILINE)


def is_dialogue(text: str) -> bool:
    """Tells whether a text begins like a dialogue."""
    return re.match(r"\s*^Human:", text, re.MULTILINE) is not None


def dialogue_row(row: dict, field: str) -> dict:
    """Returns a row of `conversations`, given one whose `field` holds a dialogue; keeps `DECISIVE_FIELDS`.

    A turn begins with a marker at the beginning of a line. White space around a turn is dropped.

    Raises:
        UserError: `field: expected ..., found ...`, if the text does not alternate questions and answers.
    """
    text = row.get(field)
    if not isinstance(text, str) or not _MARKER.search(text):
        refuse(field, "a dialogue with Human: and Assistant: at the beginnings of lines", text)
    if not is_dialogue(text):
        refuse(field, "Human: at the beginning", text.lstrip().partition("\n")[0])
    _, *parts = _MARKER.split(text)
    turns = []
    for number, (marker, said) in enumerate(zip(parts[0::2], parts[1::2], strict=True), 1):
        expected = "Assistant" if number % 2 == 0 else "Human"
        if marker != expected:
            raise UserError(f"{field}: turn {number}: expected {expected}: after {marker}:, found {marker}: again")
        if not said.strip():
            raise UserError(f"{field}: turn {number}: expected words after {marker}:, found none")
        turns.append({"role": ROLES[marker], "content": said.strip()})
    if len(turns) % 2:
        raise UserError(f"{field}: turn {len(turns)}: expected an answer at the end, found Human:")
    kept = {name: value for name, value in row.items() if name in DECISIVE_FIELDS and name != field}
    return {**kept, "conversations": turns}
