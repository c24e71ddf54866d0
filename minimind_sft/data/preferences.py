"""Recognises preference rows, which have a chosen and a rejected answer, and keeps the chosen one."""

import json
from typing import Any

from minimind_sft.data.dialogues import is_dialogue
from minimind_sft.data.formats import QUESTIONS
from minimind_sft.data.turns import SourceTurn, read_turns, refuse
from minimind_sft.errors import UserError

REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
ASKED_IN = ("messages", "conversations", *QUESTIONS, "input")
"""Fields of the question, in order of precedence."""


def is_preference(row: dict) -> bool:
    """Tells whether a row has two answers, one of them preferred, under any of the usual names."""
    if row.keys().isdisjoint(REJECTED):
        return False
    has_both = all(row.get(name) and isinstance(row[name], str | list | dict) for name in ("chosen", "rejected"))
    return has_both or any(isinstance(row.get(name), str | list) and row[name] for name in REJECTED[1:])


def refuse_preference(row: dict) -> None:
    """Refuses a preference row, with advice: fine-tuning learns one answer.

    Raises:
        UserError: naming the field of the chosen or the rejected answer.
    """
    if not is_preference(row):
        return
    name = next(name for name in ("chosen", "preferred_output", *REJECTED) if row.get(name))
    advice = "--preference chosen keeps the chosen answer"
    if isinstance(row[name], str) and is_dialogue(row[name]):
        advice = f"--dialogue_field {name} keeps the chosen dialogue"
    raise UserError(f"{name}: expected one answer to learn, found a preference row, with chosen and rejected ones; "
                    f"scripts/convert_data.py {advice}")


def chosen_row(row: dict) -> dict:
    """Turns a preference row into a row with the chosen answer alone; returns any other row unchanged.

    Raises:
        UserError: `chosen: expected ..., found ...`, if it is not clear what the chosen answer answers.
    """
    if not is_preference(row):
        return row
    row = _with_usual_names(row)
    kept = {name: value for name, value in row.items() if name not in ("chosen", *REJECTED)}
    chosen = row.get("chosen")
    if not chosen:  # the row's own turns end with the preferred answer
        return kept
    asked_in = next((name for name in ASKED_IN if kept.get(name) is not None), None)
    if isinstance(chosen, str):
        if asked_in is None and is_dialogue(chosen):
            raise UserError("chosen: expected turns, found a dialogue in one text; --dialogue_field chosen reads it")
        chosen = {"role": "assistant", "content": chosen}
    chosen = chosen if isinstance(chosen, list) else [chosen]
    turns = read_turns(chosen, "chosen")
    if turns[0].values["role"] != "assistant":
        _check_question(turns, chosen, asked_in, kept.get(asked_in))
        return {**{name: value for name, value in kept.items() if name != asked_in}, "messages": chosen}
    if asked_in is None:
        refuse("prompt", "a question beside chosen", None)
    return {**kept, **_answered(asked_in, kept[asked_in], chosen, turns)}


def _with_usual_names(row: dict) -> dict:
    """Renames the fields of OpenAI's form: `input` with messages and tools, `preferred_output`."""
    if "preferred_output" not in row:
        return row
    asked = row.get("input")
    if not isinstance(asked, dict) or not asked.get("messages"):
        refuse("input", "an object with messages", asked)
    others = {name: value for name, value in row.items() if name not in ("input", "preferred_output")}
    tools = {"tools": asked["tools"]} if asked.get("tools") else {}
    return {**others, **tools, "messages": asked["messages"], "chosen": row["preferred_output"]}


def _check_question(turns: list[SourceTurn], chosen: list, asked_in: str | None, asked: Any) -> None:
    """Refuses a whole conversation in `chosen` that does not contain the row's question."""
    if isinstance(asked, list) and asked != chosen[:len(asked)]:
        raise UserError(f"chosen: expected it to begin with the turns of {asked_in}, found others")
    if isinstance(asked, str) and asked not in [turn.values["content"] for turn in turns]:
        raise UserError(f"chosen: expected the question of {asked_in} in it, found another")


def _answered(asked_in: str, asked: Any, chosen: list, turns: list[SourceTurn]) -> dict:
    """Returns the fields that complete the form of a question with the chosen answer."""
    if asked_in in ("messages", "conversations"):
        if read_turns(asked, asked_in)[-1].values["role"] == "assistant":
            raise UserError(f"{asked_in}: expected it to end with the question that chosen answers, found an answer")
        return {asked_in: [*(json.loads(asked) if isinstance(asked, str) else asked), *chosen]}
    if asked_in == "prompt":
        return {"completion": chosen}
    if len(turns) > 1:
        raise UserError(f"chosen: expected one answer beside {asked_in}, found {len(turns)} turns")
    return {"output" if asked_in in ("instruction", "input") else "response": turns[0].values["content"]}
