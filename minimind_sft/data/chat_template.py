"""Turns a conversation into token ids and a loss mask, and a conversation that waits for an answer into a prompt.

Everything here works on marked text (`template_marks`), in which no text of the data can be taken for a control token.
Ids and mask come from the same pieces of it, so neither is ever derived from the other.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minimind_sft.data.conversation import Conversation
from minimind_sft.data.marked_turns import Rendering, Turn, add_turn, cut_at_answers, learn_once
from minimind_sft.data.pieces import MarkedSequence, TokenSequence, tokenize, too_long
from minimind_sft.data.row_size import json_characters
from minimind_sft.data.template_fields import NotRendered
from minimind_sft.data.template_marks import PROBE, MarkedTemplate, Request
from minimind_sft.data.template_sandbox import MAX_SOURCE_BYTES, PINNED_DATE
from minimind_sft.data.tokenizer import Marks, Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.files import read_text
from minimind_sft.terminal import counted

BUNDLED_TEMPLATES = ("chatml", "alpaca")
MAX_COMPARED = 40
"""Answers of a conversation that `prompt_mismatches` compares."""
RENDERED_AT_ONCE = 4_000_000
"""Characters of the renderings of a conversation that are in memory together, beside those of its sequences."""
MAX_IN_SEQUENCES = 8_000_000
"""Characters in the sequences of a conversation: each takes a few bytes until the conversation is truncated."""


@dataclass(frozen=True)
class Supervision:
    """Selects what is learned of a conversation.

    turns: "all" assistant turns or the "last" one. A turn whose message has `"train": False` is never learned.
    prompt: also learn everything outside the assistant turns, each token once.
    """

    turns: Literal["all", "last"] = "all"
    prompt: bool = False


ALL_TURNS = Supervision()


class ChatTemplate:
    """A Jinja chat template and the tokenizer whose control tokens it writes.

    A tokenizer may have another template, `tool_use`, for conversations with tools.

    Attributes:
        source, tool_source: the Jinja sources; `tool_source` is None if one template serves all conversations.
        end_of_turn, end_of_turn_id: the control token that ends an assistant turn.
        appends_end_of_turn: whether it is appended because the template does not write it.
        fingerprint: SHA-256 (hex) of everything that decides the ids: the sources, the pinned date if a template reads
            the date, the end-of-turn token if the template does not write it, and the header that replaces a missing
            generation prompt.

    Args:
        source: Jinja source; None selects the tokenizer's own.
        end_of_turn: the token to teach after an answer if the template writes none.

    Raises:
        UserError: saying why the template cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None, end_of_turn: str | None = None):
        self._arguments = (tokenizer, source, end_of_turn)
        self.tool_source = tokenizer.named_templates.get("tool_use") if source is None else None
        source = tokenizer.chat_template if source is None else source
        if source is None:
            which = " of the name default" * bool(tokenizer.named_templates)
            raise UserError(f"the tokenizer {tokenizer.name} has no chat template{which}; {_advice(tokenizer)}")
        self.tokenizer, self.source = tokenizer, source.removeprefix("\ufeff")

        template = tool_template = MarkedTemplate(tokenizer, self.source)
        if self.tool_source is not None:
            tool_template = MarkedTemplate(tokenizer, self.tool_source)
        self._templates = {False: template, True: tool_template}
        """By whether a conversation has tools."""
        found = {self._find_end_of_turn(template, end_of_turn) for template in self._templates.values()}
        if len(found) > 1:
            ends = " and ".join(repr(end) for end, _ in sorted(found))
            raise UserError(f"chat template: default and tool_use do not end an answer with the same token ({ends})")
        ((self.end_of_turn, self.appends_end_of_turn),) = found
        end_of_turn_id = tokenizer.token_to_id(self.end_of_turn)
        assert end_of_turn_id is not None, "it is one of the tokenizer's control tokens"
        self.end_of_turn_id = end_of_turn_id
        self.fingerprint = self._fingerprint()

    def __reduce__(self) -> tuple:
        return ChatTemplate, self._arguments

    @property
    def variables(self) -> frozenset[str]:
        """The variables that the templates read besides what every conversation has."""
        return frozenset().union(*(template.variables for template in self._templates.values()))

    def with_variables(self, values: Mapping[str, Any]) -> "ChatTemplate":
        """Returns the template with values for its variables, which it does not have in training."""
        changed = copy(self)
        changed._templates = {key: template.with_variables(values) for key, template in self._templates.items()}
        return changed

    def render(self, messages: Sequence[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False,
               thinking: bool | None = None) -> str:
        """Renders plain text; with `thinking` None the template decides.

        Raises:
            UserError: if the template refuses the conversation.
        """
        request = Request(len(messages), add_generation_prompt, thinking)
        return self._templates[bool(tools)].plain_texts(messages, tools, [request], "the conversation")[0]

    def generation_prompt_ids(self, messages: Sequence[dict], tools: list[dict] | None = None,
                              thinking: bool = False) -> list[int]:
        """Returns what `prompt_ids` returns for a conversation without a row."""
        return self.prompt_ids(Conversation(tuple(messages), tools, "the conversation"), thinking)

    def prompt_ids(self, conversation: Conversation, thinking: bool = False) -> list[int]:
        """Returns the ids that a model sees before its next answer: exactly what `encode` shows it there in training.

        Raises:
            UserError: as `encode`.
        """
        messages = conversation.messages
        turns, prompt, marks = self._turns_and_prompt(conversation, thinking)
        seen = list(map(_without_reasoning, messages))  # templates may drop the reasoning of earlier answers
        for count, message in enumerate(messages, 1):
            if message["role"] == "assistant" or count == len(messages):
                self._require_fields(conversation, seen[:count])
        pieces = cut_at_answers(prompt, turns, [False] * len(turns), len(turns), learn_prompt=False)
        if problem := too_long(pieces):
            raise UserError(f"{conversation.place}: {problem}")
        (encoded,) = tokenize([MarkedSequence(pieces, marks)])
        return encoded.input_ids.tolist()

    def encode(self, conversation: Conversation, supervision: Supervision = ALL_TURNS) -> list[TokenSequence]:
        """Returns sequences that teach the assistant turns, each turn in exactly one of them.

        Turns share a sequence as long as the template renders the earlier ones as it did when they were last. Sequences
        without a supervised token are left out; otherwise `supervision` does not affect the ids.

        Raises:
            UserError: at the row's place, if the template refuses the conversation, renders an answer differently from
                its own prompt for it, does not render a field, or confuses the data with its own control tokens.
        """
        (result,) = self.encode_batch([conversation], supervision)
        if isinstance(result, UserError):
            raise result
        return result

    def encode_batch(self, conversations: Iterable[Conversation],
                     supervision: Supervision = ALL_TURNS) -> list[list[TokenSequence] | UserError]:
        """Returns what `encode` returns or raises for each conversation, in less time."""
        outcomes = [self._sequences(conversation, supervision) for conversation in conversations]
        marked = [sequence for outcome in outcomes if isinstance(outcome, list) for sequence in outcome]
        encoded = iter(tokenize(marked))
        results: list[list[TokenSequence] | UserError] = []
        for outcome in outcomes:
            if isinstance(outcome, UserError):
                results.append(outcome)
                continue
            sequences = [next(encoded) for _ in outcome]
            if supervision.prompt:
                sequences = learn_once(sequences)
            results.append(sequences)
        return results

    def prompt_mismatches(self, conversation: Conversation) -> list[str]:
        """Describes each turn that training puts after other ids than a chat shows the model at that point.

        Compares `encode` with `generation_prompt_ids`. Since each answer renders everything before it, a conversation
        with more than `MAX_COMPARED` answers is compared at its first and last ones.

        Raises:
            UserError: as `encode`.
        """
        messages, tools = conversation.messages, conversation.tools
        all_learned = tuple({**message, "train": True} for message in messages)
        sequences = self.encode(replace(conversation, messages=all_learned))
        taught = [sequence.input_ids[:start] for sequence in sequences
                  for start in np.flatnonzero(np.diff(sequence.supervised, prepend=False) & sequence.supervised)]
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(taught) != len(indices):
            return [f"{conversation.place}: {counted(len(indices), 'assistant turn')} became "
                    f"{counted(len(taught), 'supervised part')}"]
        mismatches = []
        compared = list(zip(indices, taught, strict=True))
        if len(compared) > MAX_COMPARED:
            compared = compared[:MAX_COMPARED // 2] + compared[-MAX_COMPARED // 2:]
        for index, before in compared:
            prompt = self.generation_prompt_ids(messages[:index], tools, has_reasoning(messages[index]))
            if before.tolist() != prompt:
                trained, chatted = (self.tokenizer.decode(ids)[-40:] for ids in (before.tolist(), prompt))
                mismatches.append(f"{conversation.place}: {conversation.turn_name(index)}: taught after {len(before)} "
                                  f"ids ...{trained!r}, while a chat shows {len(prompt)} ids ...{chatted!r}")
        return mismatches

    def _sequences(self, conversation: Conversation, supervision: Supervision) -> list[MarkedSequence] | UserError:
        """Returns the marked sequences of a conversation, or why there are none."""
        messages = conversation.messages
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            turns, _, marks = self._turns_and_prompt(conversation, None)
            for index in indices:
                self._require_fields(conversation, messages[:index + 1])
        except UserError as error:
            return error
        chosen = [messages[index].get("train", True) for index in indices]
        if supervision.turns == "last":
            chosen[:-1] = [False] * (len(chosen) - 1)
        sequences, first, characters = [], 0, 0
        for index, turn in enumerate(turns):
            if self.appends_end_of_turn:
                turn = Turn(Rendering(turn.answered + marks.of_token[self.end_of_turn]), turn.start, turn.end + 1)
            elif index + 1 < len(turns) and turns[index + 1].rendering is turn.rendering:
                continue  # it shares the next turn's sequence
            pieces = cut_at_answers(turn.rendering.text, [*turns[:index], turn], chosen, first, supervision.prompt)
            if any(piece.supervised for piece in pieces):
                sequences.append(MarkedSequence(pieces, marks))
                characters += len(turn.rendering.text)
            if characters > MAX_IN_SEQUENCES:
                return UserError(f"{conversation.place}: expected a shorter conversation: the chat template renders it "
                                 "anew for each answer, and these sequences may have "
                                 f"{MAX_IN_SEQUENCES:,} characters in all")
            if problem := too_long(pieces):
                return UserError(f"{conversation.place}: {problem}")
            first = index + 1
        return sequences

    @property
    def sources(self) -> tuple[str, ...]:
        """The Jinja sources of all templates in use."""
        return (self.source,) if self.tool_source is None else (self.source, self.tool_source)

    def complete_sources(self) -> tuple[str, ...]:
        """Returns the sources with a generation prompt where a template has none: the header that replaces it."""
        return tuple(f"{source.removesuffix(chr(10))}{{{{ {json.dumps(template.header, ensure_ascii=False)} if "
                     "add_generation_prompt else '' }}" if template.header else source
                     for template, source in zip(self._templates.values(), self.sources, strict=False))

    @property
    def notes(self) -> list[str]:
        """Lines about the template that a person should read."""
        notes = [f"it has no generation prompt; answers are asked for with {template.header!r}, which it writes before "
                 "each of them" for template in dict.fromkeys(self._templates.values()) if template.header]
        if self.tool_source is not None:
            notes.append("conversations with tools use the tokenizer's tool_use template")
        return notes

    def _fingerprint(self) -> str:
        parts = []
        appended = self.end_of_turn if self.appends_end_of_turn else ""
        for template, source in zip(self._templates.values(), self.sources, strict=False):
            date = PINNED_DATE.date().isoformat() if "strftime_now" in source else ""
            header = [template.header] if template.header else []
            parts.append(json.dumps([source, date, appended, *header]) if date or appended or header else source)
        decisive = parts[0] if len(parts) == 1 else json.dumps(parts)
        return hashlib.sha256(decisive.encode()).hexdigest()

    def _require_fields(self, conversation: Conversation, messages: Sequence[dict]) -> None:
        """
        Raises:
            UserError: if the template does not render a field of the last of the messages, or one since the answer
                before, or if it cannot be traced.
        """
        try:
            lost = self._templates[bool(conversation.tools)].fields.first_lost(messages, conversation.tools)
        except UserError as error:
            raise UserError(f"{conversation.place}: {error}") from error
        if lost is None:
            return
        name = lost.name if lost.message is None else conversation.name(lost.message, lost.name)
        raise NotRendered(f"{conversation.place}: {name}: the chat template does not render {lost.label}, so the model "
                          "would not see what the row says; --chat_template names one that does"
                          f"{', such as chatml' if has_chatml(self.tokenizer) else ''}", name, lost.label)

    def _find_end_of_turn(self, template: MarkedTemplate, wanted: str | None) -> tuple[str, bool]:
        """Returns the token that ends a turn, and whether to append it because the template does not write it."""
        requests = [Request(1, True, False), Request(2, False, False)]
        place = "chat template, tried on one question and its answer"
        (prompt, full), marks = template.marked_texts(PROBE, None, requests, place)
        if not full.startswith(prompt):
            raise UserError(f"{place}: conversations[1]: {_mismatch(prompt, full, marks)}")
        _, answer, after_answer = full[len(prompt):].partition(PROBE[1]["content"])
        if not answer:
            raise UserError("chat template: it does not write the text of an answer")
        written = next((marks.tokens[ord(c)] for c in after_answer if ord(c) in marks.tokens), None)
        if wanted is not None and wanted not in marks.of_token:
            raise UserError(f"--end_of_turn {wanted}: the tokenizer has no such control token")
        if written and wanted and written != wanted:
            raise UserError(f"--end_of_turn {wanted}: the chat template ends a turn with {written}")
        end = written or wanted
        if end is None:
            raise UserError("chat template: it writes no control token after an answer; --end_of_turn names the one "
                            "to teach there")
        return end, not written

    def _turns_and_prompt(self, conversation: Conversation, thinking: bool | None) -> tuple[list[Turn], str, Marks]:
        """Returns the assistant turns and, unless `thinking` is None, the prompt for another one (else ""), marked.

        Raises:
            UserError: if an answered conversation does not begin with the prompt for its answer.
        """
        messages, tools, place = conversation.messages, conversation.tools, conversation.place
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        requests = []
        for index in indices:
            reasons = has_reasoning(messages[index])
            requests += [Request(index, True, reasons), Request(index + 1, False, reasons)]
        if thinking is not None:
            requests.append(Request(len(messages), True, thinking))
        at_once = 2
        if len(requests) > at_once:
            size = sum(json_characters(message) for message in messages) + json_characters(tools)
            at_once *= max(RENDERED_AT_ONCE // (at_once * size), 1)
        turns: list[Turn] = []
        for start in range(0, max(len(requests), 1), at_once):
            texts, marks = self._templates[bool(tools)].marked_texts(messages, tools, requests[start:start + at_once],
                                                                     place)
            end_mark = marks.of_token[self.end_of_turn]
            for index, prompt, full in zip(indices[start // 2:], texts[0::2], texts[1::2], strict=False):
                if not full.startswith(prompt):
                    raise UserError(f"{place}: {conversation.turn_name(index)}: {_mismatch(prompt, full, marks)}")
                position = full.find(end_mark, len(prompt))
                add_turn(turns, prompt, full, len(full) if position < 0 else position + 1)
        return turns, texts[-1] if thinking is not None else "", marks


def make_template(tokenizer: Tokenizer, choice: str | None = None, end_of_turn: str | None = None) -> ChatTemplate:
    """Makes the template that `--chat_template` and `--end_of_turn` ask for.

    Args:
        choice: the name of one of the tokenizer's templates, one of `BUNDLED_TEMPLATES`, or a file; None selects the
            tokenizer's own.

    Raises:
        UserError: if there is no such template, or as `ChatTemplate`.
    """
    if choice is None:
        return ChatTemplate(tokenizer, None, end_of_turn)
    if choice == "chatml" and end_of_turn is None and "<|im_end|>" not in tokenizer.added_tokens:
        raise UserError(f"--chat_template chatml: {tokenizer.name} has no <|im_end|>; {_advice(tokenizer)}")
    return ChatTemplate(tokenizer, tokenizer.named_templates.get(choice) or _template_source(choice), end_of_turn)


def has_chatml(tokenizer: Tokenizer) -> bool:
    return {"<|im_start|>", "<|im_end|>"}.issubset(tokenizer.added_tokens)


def _advice(tokenizer: Tokenizer) -> str:
    """Returns the flags that give such a tokenizer a chat template."""
    if tokenizer.named_templates:
        return f"--chat_template takes {', '.join((*tokenizer.named_templates, *BUNDLED_TEMPLATES))} or a file"
    if has_chatml(tokenizer):
        return "give --chat_template chatml, whose control tokens it has, or a file"
    end = shlex.quote(tokenizer.special.get("eos_token", "TOKEN"))
    return f"give --chat_template alpaca --end_of_turn {end}, which needs no other control token, or a file"


def _template_source(choice: str) -> str:
    if choice in BUNDLED_TEMPLATES:
        return (files("minimind_sft.data") / f"{choice}.jinja").read_text(encoding="utf-8")
    try:
        return read_text(Path(choice), MAX_SOURCE_BYTES)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"--chat_template {choice}: expected {', '.join(BUNDLED_TEMPLATES)} or a file with a "
                            "Jinja template, found neither") from error
        raise UserError(f"--chat_template {error}") from error


def _without_reasoning(message: dict) -> dict:
    return {name: value for name, value in message.items() if name != "reasoning_content"}


def has_reasoning(message: dict) -> bool:
    """Tells whether an assistant message holds reasoning, in its own field or between tags in the content."""
    if message.get("reasoning_content"):
        return True
    before, tag, _ = message["content"].partition("</think>")
    return bool(tag and before.rpartition("<think>")[2].strip())


def _mismatch(prompt: str, full: str, marks: Marks) -> str:
    """Shows where a prompt and the rendering of the answered conversation differ."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
    asked, rendered = (marks.spelled(text[max(at - 20, 0):at + 20]) for text in (prompt, full))
    return (f"the chat template prompts for this answer with ...{asked!r}, but renders it as ...{rendered!r}: a model "
            "would not see in training what it sees when it chats")
