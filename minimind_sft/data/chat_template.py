"""A Conversation becomes token ids and a loss mask; a conversation that waits for an answer becomes a prompt.

Everything here works on marked text (`template_marks`), in which no text of the data can be taken for a control token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minimind_sft.data.conversation import Conversation
from minimind_sft.data.template_marks import PINNED_DATE, PROBE, MarkedTemplate, Request
from minimind_sft.data.tokenizer import Marks, Tokenizer
from minimind_sft.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One sequence. `supervised[t]` says whether `input_ids[t]` is to be learned; nothing is shifted yet."""

    input_ids: list[int]
    supervised: list[bool]


class Turn(NamedTuple):
    """An assistant's turn in marked text: `prompt` asks for it; `answered` is the prompt and the answer through its
    end-of-turn token, and what the template writes after that is `rest`."""

    prompt: str
    answered: str
    rest: str


class ChatTemplate:
    """A Jinja chat template and the tokenizer whose control tokens it writes.

    Attributes:
        end_of_turn, end_of_turn_id: the control token that ends an assistant's turn.
        fingerprint: SHA-256 (hex) of the source, and of the pinned date where the template reads the date.

    Args:
        source: Jinja source; None takes the tokenizer's own.
        end_of_turn: for a template that writes no control token after an answer: the one to teach there.

    Raises:
        UserError: saying why the template cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None, end_of_turn: str | None = None):
        source = tokenizer.chat_template if source is None else source
        if source is None:
            raise UserError("the tokenizer folder has no chat template (tokenizer_config.json, chat_template)")
        self.tokenizer, self.source = tokenizer, source
        date = PINNED_DATE.date().isoformat() if "strftime_now" in source else ""
        self.fingerprint = hashlib.sha256((source + date).encode()).hexdigest()
        self._arguments = (tokenizer, source, end_of_turn)

        self._template = MarkedTemplate(tokenizer, source)
        # Found by looking at a rendering; until then a turn ends where its rendering does.
        self.end_of_turn, self._appends_end_of_turn = None, False
        self.end_of_turn, self._appends_end_of_turn = self._find_end_of_turn(end_of_turn)
        self.end_of_turn_id = tokenizer.token_to_id(self.end_of_turn)

    def __reduce__(self):
        return ChatTemplate, self._arguments

    def render(self, messages: Sequence[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False,
               thinking: bool | None = None) -> str:
        """The plain text; `thinking` None leaves the template its own default.

        Raises:
            UserError: if the template refuses the conversation.
        """
        request = Request(len(messages), add_generation_prompt, thinking)
        return self._template.plain_texts(messages, tools, [request], "the conversation")[0]

    def generation_prompt_ids(self, messages: Sequence[dict], tools: list[dict] | None = None,
                              thinking: bool = False) -> list[int]:
        """What a model is to see before its next answer; id for id what `encode` lets it see there in training.

        Raises:
            UserError: as `encode`.
        """
        turns, prompt, marks = self._turns_and_prompt(messages, tools, thinking, "the conversation")
        return self._encode(prompt, turns, len(turns), marks).input_ids

    def encode(self, conversation: Conversation) -> list[Encoded]:
        """The sequences that teach the assistant's turns, each turn in exactly one of them.

        Several turns share a sequence as long as the template renders the earlier ones as it did when they were last.

        Raises:
            UserError: at the row's place, if the template refuses it, prompts for an answer otherwise than it renders
                it, or cannot be kept from confusing the data with its own control tokens.
        """
        turns, marks = self._turns(conversation.messages, conversation.tools, conversation.place)
        sequences, first = [], 0
        for index, turn in enumerate(turns):
            if index + 1 < len(turns) and self._shares_sequence(turn, turns[index + 1]):
                continue
            if self._appends_end_of_turn:
                turn = turn._replace(answered=turn.answered + marks.of_token[self.end_of_turn])
            sequences.append(self._encode(turn.answered + turn.rest, [*turns[:index], turn], first, marks))
            first = index + 1
        return sequences

    def _shares_sequence(self, turn: Turn, following: Turn) -> bool:
        return following.prompt.startswith(turn.answered) and not self._appends_end_of_turn

    def _encode(self, text: str, turns: Sequence[Turn], first: int, marks: Marks) -> Encoded:
        """Ids of marked text in which the turns from `first` on are supervised.

        The text is cut at both ends of every answer, earlier ones included, so that no token spans from what a model
        is given into what it says.
        """
        ids: list[int] = []
        supervised: list[bool] = []

        def add(piece: str, learned: bool) -> None:
            piece_ids = marks.tokenizer.encode(piece, add_special_tokens=False).ids
            ids.extend(piece_ids)
            supervised.extend([learned] * len(piece_ids))

        position = 0
        for index, turn in enumerate(turns):
            if text.startswith(turn.answered):
                add(text[position:len(turn.prompt)], False)
                add(text[len(turn.prompt):len(turn.answered)], index >= first)
                position = len(turn.answered)
        add(text[position:], False)
        return Encoded(ids, supervised)

    def _find_end_of_turn(self, wanted: str | None) -> tuple[str, bool]:
        """The token that ends a turn, and whether it has to be appended because the template does not write it."""
        (turn,), marks = self._turns(PROBE, None, "chat template, tried on one question and its answer")
        _, answer, after_answer = turn.answered[len(turn.prompt):].partition(PROBE[1]["content"])
        if not answer:
            raise UserError("chat template: it does not write the text of an answer")
        written = next((marks.tokens[ord(c)] for c in after_answer if ord(c) in marks.tokens), None)
        if wanted is not None and wanted not in marks.of_token:
            raise UserError(f"--end_of_turn {wanted}: the tokenizer has no such control token")
        if written and wanted and written != wanted:
            raise UserError(f"--end_of_turn {wanted}: the chat template ends a turn with {written}")
        if not written and not wanted:
            raise UserError("chat template: it writes no control token after an answer; --end_of_turn names the one "
                            "to teach there")
        return written or wanted, not written

    def _turns(self, messages: Sequence[dict], tools: list[dict] | None, place: str) -> tuple[list[Turn], Marks]:
        turns, _, marks = self._turns_and_prompt(messages, tools, None, place)
        return turns, marks

    def _turns_and_prompt(self, messages: Sequence[dict], tools: list[dict] | None, thinking: bool | None,
                          place: str) -> tuple[list[Turn], str, Marks]:
        """The assistant's turns and, unless `thinking` is None, the prompt for another one (else ""), marked."""
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        requests = []
        for index in indices:
            reasons = has_reasoning(messages[index])
            requests += [Request(index, True, reasons), Request(index + 1, False, reasons)]
        if thinking is not None:
            requests.append(Request(len(messages), True, thinking))
        texts, marks = self._template.marked_texts(messages, tools, requests, place)

        turns = []
        end_mark = marks.of_token.get(self.end_of_turn)
        for index, prompt, full in zip(indices, texts[0::2], texts[1::2], strict=False):
            if not full.startswith(prompt):
                raise UserError(f"{place}: conversations[{index}]: {_mismatch(prompt, full, marks)}")
            position = full.find(end_mark, len(prompt)) if end_mark else -1
            end = len(full) if position < 0 else position + 1
            turns.append(Turn(prompt, full[:end], full[end:]))
        return turns, texts[-1] if thinking is not None else "", marks


def has_reasoning(message: dict) -> bool:
    """Whether an assistant's message holds reasoning: in its own field, or between tags in the content."""
    if message.get("reasoning_content"):
        return True
    before, tag, _ = message["content"].partition("</think>")
    return bool(tag and before.rpartition("<think>")[2].strip())


def _mismatch(prompt: str, full: str, marks: Marks) -> str:
    """Where a prompt and the rendering of the answered conversation part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
    asked, rendered = (text[max(at - 20, 0):at + 20].translate(marks.tokens) for text in (prompt, full))
    return (f"the chat template prompts for this answer with ...{asked!r}, but renders it as ...{rendered!r}: a model "
            "would not see in training what it sees when it chats")
