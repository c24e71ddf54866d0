"""A Conversation becomes token ids and a loss mask; a conversation that waits for an answer becomes a prompt.

A control token's text in the data must stay text, while the same text written by the template must become the
token. So the template is rendered with marks (private-use characters, see `tokenizer.Marks`) where it writes control
tokens; "marked text" below is text with such marks, and only marks become control tokens.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jinja2

from minimind_sft.data.conversation import Conversation
from minimind_sft.data.template_marks import (
    PINNED_DATE,
    assembles_tokens,
    compile_template,
    iter_strings,
    make_environment,
    map_strings,
)
from minimind_sft.data.tokenizer import MARKS_END, MARKS_START, Marks, Tokenizer
from minimind_sft.errors import UserError

THINKING_FLAGS = ("enable_thinking", "open_thinking", "thinking")
"""The names under which templates read whether the model is to think."""

ASSISTANT_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""In an assistant's message these are what they say; anywhere else in the data they are text."""

PROBE = ({"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"})

# Templates are foreign code: apart from Jinja's own errors they can run into whatever an expression can raise.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
                   RecursionError)


@dataclass(frozen=True)
class Encoded:
    """One sequence. `supervised[t]` says whether `input_ids[t]` is to be learned; nothing is shifted yet."""

    input_ids: list[int]
    supervised: list[bool]


class Request(NamedTuple):
    """One rendering of a conversation: its first `count` messages, with or without the generation prompt."""

    count: int
    add_generation_prompt: bool
    thinking: bool


class Turn(NamedTuple):
    """An assistant's turn in marked text: `prompt` asks for it, `full` begins with `prompt` and holds the answer.

    Learned is `full[len(prompt):end]`.
    """

    prompt: str
    full: str
    end: int


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
        if re.search(f"[{chr(MARKS_START)}-{chr(MARKS_END)}]", source):
            raise UserError("chat template: contains private-use characters above U+F0000, which mark control tokens")
        self.tokenizer, self.source = tokenizer, source
        date = PINNED_DATE.date().isoformat() if "strftime_now" in source else ""
        self.fingerprint = hashlib.sha256((source + date).encode()).hexdigest()
        self._arguments = (tokenizer, source, end_of_turn)

        control = tokenizer.control_tokens(source)
        self._control_pattern = _any_of(control)
        # Text without the first character of any control token cannot spell one, nor the beginning of one.
        self._opening_pattern = _any_of(sorted({token[0] for token in control}))
        self._tags = [token for token in ASSISTANT_TAGS if token in control]
        self._environment = make_environment()
        self._marked_templates: dict[str, jinja2.Template] = {}
        try:
            self._template = self._environment.from_string(source)
            self._assembles = assembles_tokens(self._environment.parse(source), control)
        except jinja2.TemplateError as error:
            raise UserError(f"chat template: {_one_line(error)}") from error
        # Known only by looking; until then a turn ends where its rendering does.
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
        try:
            return self._render(self._template, self.tokenizer.special, _with_aliases(messages), tools,
                                add_generation_prompt, thinking)
        except TEMPLATE_ERRORS as error:
            raise UserError(f"the chat template refuses the conversation: {_one_line(error)}") from error

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
            text = turn.full + (marks.of_token[self.end_of_turn] if self._appends_end_of_turn else "")
            sequences.append(self._encode(text, turns[:index + 1], first, marks))
            first = index + 1
        return sequences

    def _shares_sequence(self, turn: Turn, following: Turn) -> bool:
        return (not self._appends_end_of_turn and len(turn.full) <= len(following.prompt)
                and following.prompt.startswith(turn.full))

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
            if text.startswith(turn.full):
                add(text[position:len(turn.prompt)], False)
                end = len(text) if self._appends_end_of_turn and index == len(turns) - 1 >= first else turn.end
                add(text[len(turn.prompt):end], index >= first)
                position = end
        add(text[position:], False)
        return Encoded(ids, supervised)

    def _find_end_of_turn(self, wanted: str | None) -> tuple[str, bool]:
        """The token that ends a turn, and whether it has to be appended because the template does not write it."""
        (turn,), marks = self._turns(PROBE, None, "chat template, tried on one question and its answer")
        _, answer, after_answer = turn.full[len(turn.prompt):].partition(PROBE[1]["content"])
        if not answer:
            raise UserError("chat template: it does not write the text of an answer (templates for images want the "
                            "content in parts, which is not supported)")
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
        texts, marks = self._marked_texts(messages, tools, requests, place)

        turns = []
        end_mark = marks.of_token.get(self.end_of_turn)
        for index, prompt, full in zip(indices, texts[0::2], texts[1::2], strict=False):
            if not full.startswith(prompt):
                raise UserError(f"{place}: conversations[{index}]: {_mismatch(prompt, full, marks)}")
            position = full.find(end_mark, len(prompt)) if end_mark else -1
            turns.append(Turn(prompt, full, len(full) if position < 0 else position + 1))
        return turns, texts[-1] if thinking is not None else "", marks

    def _marked_texts(self, messages: Sequence[dict], tools: list[dict] | None, requests: list[Request],
                      place: str) -> tuple[list[str], Marks]:
        """The requested renderings as marked text, by the first way whose text is that of the plain rendering."""
        messages = _with_aliases(messages)
        try:
            plain = self._texts(self._template, self.tokenizer.special, messages, tools, requests)
        except TEMPLATE_ERRORS as error:
            raise UserError(f"{place}: the chat template refuses the conversation: {_one_line(error)}") from error
        data = "\n".join(iter_strings([*messages, tools]))
        marks = self.tokenizer.marks(data)
        if not self._opening_pattern.search(data):
            return [self._mark(text, marks) for text in plain], marks
        for way in (self._template_marked, self._data_shielded):
            try:
                texts = way(messages, tools, requests, marks)
            except TEMPLATE_ERRORS:
                continue
            if [text.translate(marks.tokens) for text in texts] == plain:
                return texts, marks
        raise UserError(f"{place}: its text contains control tokens, and the chat template treats them so that they "
                        "cannot be told from its own")

    def _template_marked(self, messages: list[dict], tools: list[dict] | None, requests: list[Request],
                         marks: Marks) -> list[str]:
        """The template's constants and an assistant's tags are marked; the rest of the data is as it is."""
        if self._assembles:
            raise jinja2.TemplateError("the template's constants do not hold its control tokens whole")
        mark = partial(self._mark, marks=marks)
        if marks.shield not in self._marked_templates:
            self._marked_templates[marks.shield] = compile_template(self._environment, self.source, mark)
        special = {name: marks.of_token.get(token, token) for name, token in self.tokenizer.special.items()}
        tags = _any_of(self._tags)
        messages = _change_data(messages, lambda text: tags.sub(lambda tag: marks.of_token[tag[0]], text), str)
        return self._texts(self._marked_templates[marks.shield], special, messages, tools, requests)

    def _data_shielded(self, messages: list[dict], tools: list[dict] | None, requests: list[Request],
                       marks: Marks) -> list[str]:
        """A shield in every place of the data where a control token could begin; what is then one, is written by
        the template or an assistant's tag."""
        def shield(text: str) -> str:
            return self._opening_pattern.sub(lambda opening: opening[0] + marks.shield, text)

        def shield_all_but_tags(text: str) -> str:
            parts = re.split(f"({_any_of(self._tags).pattern})", text)
            return "".join(part if part in self._tags else shield(part) for part in parts)

        messages = _change_data(messages, shield_all_but_tags, shield)
        texts = self._texts(self._template, self.tokenizer.special, messages, map_strings(tools, shield), requests)
        return [self._mark(text, marks).replace(marks.shield, "") for text in texts]

    def _mark(self, text: str, marks: Marks) -> str:
        return self._control_pattern.sub(lambda token: marks.of_token[token[0]], text)

    def _texts(self, template: jinja2.Template, special: dict[str, str], messages: list[dict],
               tools: list[dict] | None, requests: list[Request]) -> list[str]:
        return [self._render(template, special, messages[:count], tools, add_generation_prompt, thinking)
                for count, add_generation_prompt, thinking in requests]

    def _render(self, template: jinja2.Template, special: dict[str, str], messages: list[dict],
                tools: list[dict] | None, add_generation_prompt: bool, thinking: bool | None) -> str:
        flags = {} if thinking is None else dict.fromkeys(THINKING_FLAGS, thinking)
        return template.render(messages=messages, tools=tools, documents=None,
                               add_generation_prompt=add_generation_prompt, **special, **flags)


def has_reasoning(message: dict) -> bool:
    """Whether an assistant's message holds reasoning: in its own field, or between tags in the content."""
    if message.get("reasoning_content"):
        return True
    before, tag, _ = message["content"].partition("</think>")
    return bool(tag and before.rpartition("<think>")[2].strip())


def _with_aliases(messages: Sequence[dict]) -> list[dict]:
    """Reasoning also under `thinking`, where gpt-oss templates look for it (as Hugging Face does)."""
    return [{"thinking": message["reasoning_content"], **message} if message.get("reasoning_content") else message
            for message in messages]


def _change_data(messages: list[dict], change_assistant: Callable[[str], str],
                 change_other: Callable[[str], str]) -> list[dict]:
    """Every string of the messages changed, except their roles."""
    changed = []
    for message in messages:
        change = change_assistant if message["role"] == "assistant" else change_other
        changed.append({name: value if name == "role" else map_strings(value, change)
                        for name, value in message.items()})
    return changed


def _mismatch(prompt: str, full: str, marks: Marks) -> str:
    """Where a prompt and the rendering of the answered conversation part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
    asked, rendered = (text[max(at - 20, 0):at + 20].translate(marks.tokens) for text in (prompt, full))
    return (f"the chat template prompts for this answer with ...{asked!r}, but renders it as ...{rendered!r}: a model "
            "would not see in training what it sees when it chats")


def _any_of(texts: list[str]) -> re.Pattern:
    """Matches the longest of `texts`; nothing where there is none."""
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(alternatives or r"(?!)")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
