"""How a chat template writes the calls of an answer."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Slot(Enum):
    """A place in a call that differs from call to call.

    ID: nine letters and digits that name the call, as Mistral's templates write them.
    """

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"


@dataclass(frozen=True)
class Pairs:
    """Arguments that are written one by one instead of as a JSON object.

    Each is `before_name` NAME `before_value` VALUE `after_value`; nothing is between two. A string is written as it is,
    any other value as JSON.

    constants: true, false and null are written as in "json" or as in "python".
    """

    before_name: str
    before_value: str
    after_value: str
    constants: Literal["json", "python"] = "json"


@dataclass(frozen=True)
class ToolFormat:
    """The calls of an answer are: opening, call, between, call, ..., call, closing. Text may stand before and after.

    call: text and slots, in their order, as in ('<tool_call>\\n{"name": "', NAME, '", "arguments": ', ARGUMENTS,
        '}\\n</tool_call>').
    between: text between two calls; None if an answer has at most one.
    pairs: how the arguments are written; None: as a JSON object.
    """

    opening: str
    call: tuple[str | Slot, ...]
    between: str | None
    closing: str
    pairs: Pairs | None = None
