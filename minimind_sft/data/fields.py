"""Checks fields beside a conversation: some would change what is learned and are refused, others are ignored."""

from collections.abc import Callable, Iterator
from typing import Any

from minimind_sft.data.formats import SYSTEM_FIELDS, Form, find_form, source_turns
from minimind_sft.data.turn_flags import EXPECTED
from minimind_sft.data.turns import REASONING_FIELDS, SourceTurn
from minimind_sft.errors import UserError, describe

MEDIA = {"image", "images", "audio", "audios", "video", "videos"}
LABELS = ("label", "kto_tag")
"""True marks an answer to learn, false one to avoid."""
ROW_FLAGS = {*EXPECTED, "mask", "loss_mask", "sample_weight"}
SUSPECT_FIELDS = frozenset([*MEDIA, *LABELS, *ROW_FLAGS])
"""Fields of a row that `refuse_unsupported` looks at."""

ONES, ZEROS = ("true", "1", "1.0"), ("0", "0.0")

ROW_FIELDS = frozenset([*SYSTEM_FIELDS, "tools", "functions", "kind", *EXPECTED])
"""Fields read beside any conversation; `kind` groups the scores of eval_llm.py."""
DECISIVE_FIELDS = ROW_FIELDS | SUSPECT_FIELDS
"""Fields beside a conversation that decide whether and how it is learned: each is read or refused."""
TURN_FIELDS = frozenset([*REASONING_FIELDS, "role", "content", "tools", "functions", "tool_calls", "function_call",
                         *EXPECTED])


def refuse_unsupported(row: dict, form: Form) -> None:
    """Refuses a row with a field that should change what is learned but cannot be honoured.

    Raises:
        UserError: naming the field.
    """
    drop = " (scripts/convert_data.py --drop_fields {name} leaves the field out)"
    refuse_media(row, lambda name: name, drop)
    for name in sorted(row.keys() & ROW_FLAGS):
        value = row[name]
        if value not in (None, "") and not (name in EXPECTED and _word(value) in ONES):
            raise UserError(f"{name}: expected this flag in a turn, found {describe(value)} for the whole row"
                            f"{drop.format(name=name)}")
    for name in LABELS:
        if _says_no(row.get(name), form):
            raise UserError(f"{name}: expected an answer to learn, found {describe(row[name])}, which marks an answer "
                            "to avoid")


def refuse_media(values: dict, full_name: Callable[[str], str], advice: str = "") -> None:
    """Refuses a row or a turn with an image, audio or video.

    Raises:
        UserError: naming the field.
    """
    for name in sorted(values.keys() & MEDIA):
        if values[name]:
            raise UserError(f"{full_name(name)}: expected nothing, as these models read only text, found "
                            f"{describe(values[name])}{advice.format(name=name)}")


def ignored_fields(row: dict, as_text: bool) -> set[str]:
    """Returns the fields of a usable row that nothing reads, such as `id` or `messages[].id`.

    Args:
        as_text: whether the row is read as running text.
    """
    form = None if as_text else find_form(row)
    if form is None:
        return set(_others(row, frozenset(["text", "kind"])))
    names = set(_others(row, ROW_FIELDS.union(form.fields, form.extras)))
    for turn in source_turns(row, form):
        names.update(f"{turn.where.partition('[')[0]}[].{name}" for name in _others(turn.values, _turn_fields(turn)))
    return names


def _turn_fields(turn: SourceTurn) -> frozenset[str]:
    fields = TURN_FIELDS | {name.rpartition(".")[2] for name in turn.names.values()}
    return fields | {"name", "tool_call_id"} if turn.values["role"] == "tool" else fields


def _others(values: dict, read: frozenset[str]) -> Iterator[str]:
    """Yields the names of non-empty values that are not read."""
    return (name[:40] for name, value in values.items() if name not in read and value not in (None, "", [], {}))


def _says_no(label: Any, form: Form) -> bool:
    """Tells whether a label marks an answer to avoid. A 0 does so beside a prompt; elsewhere it may be a class."""
    return _word(label) == "false" or (_word(label) in ZEROS and form.fields[0] == "prompt")


def _word(value: Any) -> str:
    """Spells a truth value or a number as in a table, whose cells are all text."""
    return str(value).lower() if isinstance(value, bool | int | float | str) else ""
