"""Turns rows into questions: a row's last assistant turn is the expected answer to what comes before it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from minimind_sft.data.chat_template import ChatTemplate, Supervision
from minimind_sft.data.conversation import Conversation, parse_conversation
from minimind_sft.data.dataset import kind_of
from minimind_sft.data.reading import read_rows
from minimind_sft.errors import UserError
from minimind_sft.inference.chat import THINK_END


class Row(NamedTuple):
    """A conversation to score, and the kind of question that its row names."""

    kind: str
    conversation: Conversation


@dataclass(frozen=True)
class Question:
    """The question that a row's last assistant turn answers.

    messages: all messages before that turn; what follows it does not matter.
    prompt: their ids with the generation prompt.
    expected: the turn's text as training teaches it, without reasoning.
    has_call: whether the turn calls a tool; the expected text then holds the call as the template writes it.
    problem: why there is nothing to ask or compare, with the row's place; otherwise empty.
    """

    kind: str
    place: str
    messages: Sequence[dict]
    tools: list[dict] | None
    prompt: list[int]
    expected: str
    has_call: bool = False
    problem: str = ""


def read_scored_rows(files: Iterable[Path]) -> list[Row]:
    """Reads the rows of all files.

    Raises:
        UserError: names file and line, for a row that is not a conversation or has no assistant turn.
    """
    return [Row(kind_of(row), parse_conversation(row, place))
            for path in files for place, row in read_rows(path)]


def make_question(row: Row, template: ChatTemplate, thinking: bool, context: int) -> Question:
    """Turns a row into a question. The model's context has `context` tokens."""
    kind, conversation = row
    messages, place = conversation.messages, conversation.place
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    before = messages[:last]
    turn = {name: value for name, value in messages[last].items() if name != "reasoning_content"}
    turn |= {"content": without_reasoning(turn["content"]), "train": True}
    has_call = bool(turn.get("tool_calls"))
    problem, prompt, expected = "", [], ""
    if not (turn["content"] or has_call):
        problem = f"{place}: the last assistant turn has no words to compare with"
    else:
        try:
            expected = _taught_text(template, replace(conversation, messages=(*before, turn)))
            prompt = template.generation_prompt_ids(before, conversation.tools, thinking)
            if len(prompt) >= context:
                problem = f"{place}: the prompt has {len(prompt):,} tokens, the model's context is {context:,}"
        except UserError as error:
            problem = str(error) if str(error).startswith(place) else f"{place}: {error}"
    return Question(kind, place, before, conversation.tools, prompt, expected, has_call, problem)


def without_reasoning(text: str) -> str:
    """Removes the text up to `</think>`, and white space around the rest."""
    before, tag, after = text.partition(THINK_END)
    return (after if tag else before).strip()


def _taught_text(template: ChatTemplate, conversation: Conversation) -> str:
    """Returns the text that training teaches for the last turn, without its end-of-turn token."""
    sequence = template.encode(conversation, Supervision("last"))[-1]
    ids = sequence.input_ids[sequence.supervised].tolist()
    return without_reasoning(template.tokenizer.decode(ids[:-1] if ids[-1] == template.end_of_turn_id else ids))
