"""The formats conversation data come in: recognises a row's form by its fields and reads its turns."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

from minimind_sft.data.lines import MAX_ROW_VALUES
from minimind_sft.data.turn_flags import is_flagged
from minimind_sft.data.turns import SourceTurn, read_turns, refuse, turn_keys
from minimind_sft.errors import UserError
from minimind_sft.strict_json import parse_json

QUESTIONS = ("prompt", "question", "query", "instruction")
ANSWERS = ("completion", "response", "answer", "output")
CONTEXTS = ("input", "context")
"""Fields of text that belongs to an instruction: Alpaca's and Dolly's."""
SYSTEM_FIELDS = ("system", "system_prompt")
EMPTY: tuple = (None, "", [])


class Form(NamedTuple):
    """A form of conversation.

    fields: the fields a row must have.
    turns: reads the turns from a row; None for a single field with a list of turns.
    extras: optional fields.
    """

    fields: tuple[str, ...]
    turns: Callable[[dict], list[SourceTurn]] | None = None
    extras: tuple[str, ...] = ()


def find_form(row: dict) -> Form | None:
    """Returns the form of a row's conversation; None for a row of running text, `{"text": ...}`.

    A form with empty fields counts only if no other form is there: a table made of several sources gives every row the
    columns of all.

    Raises:
        UserError: `field: expected ..., found ...`, if the row has none of the forms, or two of them.
    """
    complete = [form for form in FORMS if all(row.get(name) is not None for name in form.fields)
                and (form.turns is not _conversation_turns or _is_list(row["conversation"]))]
    found = [form for form in complete if any(row[name] not in EMPTY for name in form.fields)]
    if len(found) > 1:
        raise UserError(f"{found[0].fields[0]}: expected one form of conversation in a row, found "
                        f"{' and '.join(' with '.join(form.fields) for form in found)}")
    if found:
        return found[0]
    question, answer = (next(_filled(row, names), None) for names in (QUESTIONS, ANSWERS))
    if question and answer and row.get("text"):
        raise UserError(f"text: expected running text or a question with its answer, found {question} and {answer} too "
                        "(scripts/convert_data.py --drop_fields text leaves the text out)")
    if complete and not (question and answer) and not row.get("text"):
        return complete[0]  # reading its turns tells what is missing
    return _question_form(row) if row.get("text") is None or (question and answer) else None


def source_turns(row: dict, form: Form) -> list[SourceTurn]:
    """Reads the turns of a row, first the one of its system field.

    Raises:
        UserError: `field: expected ..., found ...`
    """
    system = [] if row.keys().isdisjoint(SYSTEM_FIELDS) else _system_turn(row)
    name = form.fields[0]
    return [*system, *(read_turns(row[name], name) if form.turns is None else form.turns(row))]


def form_name(row: dict) -> str:
    """Names the form of a usable row: `conversations (from, value)`, `instruction, output`, `text`."""
    form = find_form(row)
    if form is None:
        return "text"
    turns = row[form.fields[0]]
    if isinstance(turns, list):
        keys = ", ".join(_pair_keys(turns) or turn_keys(turns[0]))
    elif form.turns in (None, _conversation_turns):
        keys = "JSON in a string"
    else:
        return ", ".join(form.fields)
    return f"{', '.join(form.fields)} ({keys})"


def field_names(row: dict) -> str:
    """Lists the first field names of a row for an error message."""
    names = [json.dumps(name, ensure_ascii=False)[1:-1][:40] for name in sorted(row)[:10]]
    return ", ".join(names) + (", ..." if len(row) > 10 else "") or "no fields"


def _is_list(value: Any) -> bool:
    """Tells whether `conversation` holds turns; in some data it is a number or a name."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _filled(row: dict, names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if row.get(name) not in EMPTY)


def _question_form(row: dict) -> Form:
    """Returns the form of one question and one answer, each under one of its usual names."""
    questions, answers = (list(_filled(row, names)) or [name for name in names if row.get(name) is not None]
                          for names in (QUESTIONS, ANSWERS))
    if not questions and row.get("input") is not None:
        questions = ["input"]
    if not questions or not answers:
        _refuse_row(row, questions + answers)
    for names, kind in ((questions, "question"), (answers, "answer")):
        if len(names) > 1:
            raise UserError(f"{names[1]}: expected one {kind} in a row, found {names[0]} too")
    question, answer = questions[0], answers[0]
    if question == "prompt" and not isinstance(row["prompt"], str):
        return Form((question, answer), partial(_prompt_turns, answer=answer))
    contexts = CONTEXTS if question == "instruction" else ()
    for name in CONTEXTS:
        if name not in (question, *contexts) and row.get(name):
            raise UserError(f"{name}: expected it only beside instruction, found it beside {question}: put both into "
                            f"{question}, in reading order")
    return Form((question, answer), partial(_question_turns, question=question, answer=answer, contexts=contexts),
                (*contexts, "history"))


def _refuse_row(row: dict, given: list[str]) -> NoReturn:
    """Raises an error that says what is missing from the row's form, if it has a part of one."""
    for form in FORMS:
        missing = [name for name in form.fields if row.get(name) is None]
        if 0 < len(missing) < len(form.fields):
            refuse(missing[0], f"a value, as the row has {' and '.join(set(form.fields) - set(missing))}", None)
    if given:
        is_question = given[0] not in ANSWERS
        refuse("answer" if is_question else "question", f"a value, as the row has {given[0]}", None)
    raise UserError(f"conversations: expected conversations, messages, a question ({', '.join(QUESTIONS)}) with an "
                    f"answer ({', '.join(ANSWERS)}), or text, found a row with {field_names(row)}")


def _system_turn(row: dict) -> list[SourceTurn]:
    given = [name for name in SYSTEM_FIELDS if row.get(name) not in (None, "")]
    if len(given) > 1 and row[given[0]] != row[given[1]]:
        raise UserError(f"{given[1]}: expected the same text as {given[0]}, found another")
    return [_turn("system", row[name], name) for name in given[:1]]


def _turn(role: str, content: Any, where: str) -> SourceTurn:
    """Makes a turn of one field of a row."""
    return SourceTurn({"role": role, "content": content}, where, {"content": where})


def _conversation_turns(row: dict) -> list[SourceTurn]:
    """Reads turns, or pairs of a question and its answer."""
    keys = _pair_keys(row["conversation"])
    return _pair_turns(row["conversation"], *keys) if keys else read_turns(row["conversation"], "conversation")


def _pair_keys(turns: Any) -> tuple[str, str] | None:
    """Returns the keys of question and answer in a list of pairs; None for a list of turns."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, dict) or turn_keys(first)[0] in first:
        return None
    return next((keys for keys in PAIR_KEYS if keys[0] in first), None)


def _pair_turns(pairs: list, question: str, answer: str) -> list[SourceTurn]:
    """Reads objects that hold a pair. Further fields, such as a flag, belong to the answer."""
    turns = []
    for index, pair in enumerate(pairs):
        where = f"conversation[{index}]"
        if not isinstance(pair, dict) or question not in pair:
            refuse(where, f"an object with {question} and {answer}", pair)
        others = {name: value for name, value in pair.items() if name not in ("system", question, answer)}
        if pair.get("system"):
            name = f"{where}.system"
            turns.append(SourceTurn({"role": "system", "content": pair["system"]}, where,
                                    {"role": name, "content": name}))
        turns += [SourceTurn({**more, "role": role, "content": pair.get(key)}, where, {"content": f"{where}.{key}"})
                  for role, key, more in (("user", question, {}), ("assistant", answer, others))]
    return turns


def _prompt_turns(row: dict, answer: str = "completion") -> list[SourceTurn]:
    """Reads text or messages. Assistant turns inside a prompt are not learned unless a flag says so."""
    prompt, completion = row["prompt"], row[answer]
    if row.get("history"):
        raise UserError(f"history: expected the earlier turns in the prompt, as messages, beside {answer}")
    if isinstance(prompt, str):
        before = [_turn("user", prompt, "prompt")]
    else:
        before = [turn._replace(values={**turn.values, "train": False})
                  if turn.values["role"] == "assistant" and not is_flagged(turn.values) else turn
                  for turn in read_turns(prompt, "prompt")]
    if isinstance(completion, str):
        after = [_turn("assistant", completion, answer)]
    else:
        after = read_turns([completion] if isinstance(completion, dict) else completion, answer)
    return before + after


def _question_turns(row: dict, question: str, answer: str, contexts: tuple[str, ...]) -> list[SourceTurn]:
    """Reads the pairs of `history` and the question, with its context on the line below it."""
    given = [name for name in contexts if row.get(name) not in (None, "")]
    if len(given) > 1:
        raise UserError(f"{given[1]}: expected one text beside {question}, found {given[0]} too")
    for name in (question, *given):
        if not isinstance(row.get(name), str | None):
            refuse(name, "a string", row[name])
    asked = "\n".join(filter(None, (row[question], *(row[name] for name in given))))
    if not asked.strip():
        refuse(question, "a question", asked)
    return [*_history_turns(row.get("history")), _turn("user", asked, question),
            _turn("assistant", row[answer], answer)]


def _history_turns(history: Any) -> list[SourceTurn]:
    if isinstance(history, str) and history.lstrip().startswith("["):
        history = parse_json(history, "history", "a list of [question, answer] pairs or the JSON of one",
                             MAX_ROW_VALUES)
    if not isinstance(history, list | None):
        refuse("history", "a list of [question, answer] pairs", history)
    turns = []
    for index, pair in enumerate(history or []):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            refuse(where, "a pair [question, answer]", pair)
        turns += [SourceTurn({"role": role, "content": said}, where, {"content": f"{where}[{number}]"})
                  for number, (role, said) in enumerate(zip(("user", "assistant"), pair, strict=True))]
    return turns


PAIR_KEYS = (("human", "assistant"), ("input", "output"))
"""Keys of question and answer in a list of pairs: ms-swift's and XTuner's."""
FORMS = (
    Form(("conversations",)),
    Form(("messages",)),
    Form(("conversation",), _conversation_turns),
    Form(("prompt", "completion"), _prompt_turns),
    Form(("instruction", "output"), partial(_question_turns, question="instruction", answer="output",
                                            contexts=("input",)), ("input", "history")),
)
"""Forms that take precedence over any other question with an answer. Running text counts only without any of these:
Alpaca rows often carry a rendering of themselves as `text`."""
