"""A Conversation becomes token ids and a loss mask; a conversation that waits for an answer becomes a prompt.

Everything here works on marked text (`template_marks`), in which no text of the data can be taken for a control token.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from minimind_sft.data.conversation import Conversation
from minimind_sft.data.template_fields import RenderedFields
from minimind_sft.data.template_marks import PINNED_DATE, PROBE, MarkedTemplate, Request
from minimind_sft.data.template_pieces import (
    MarkedSequence,
    TokenSequence,
    Turn,
    cut_at_answers,
    learn_once,
    tokenize,
)
from minimind_sft.data.tokenizer import Marks, Tokenizer
from minimind_sft.errors import UserError

BUNDLED_TEMPLATES = ("chatml", "alpaca")
MAX_COMPARED = 40


@dataclass(frozen=True)
class Supervision:
    """What is to be learned of a conversation.

    turns: "all" the assistant's turns, or its "last" one. A turn whose message says `"train": False` is not learned
        in either case.
    prompt: also everything that is no turn of the assistant's, each token once.
    """

    turns: Literal["all", "last"] = "all"
    prompt: bool = False


ALL_TURNS = Supervision()


class ChatTemplate:
    """A Jinja chat template and the tokenizer whose control tokens it writes.

    A tokenizer may bring another template for conversations with tools, `tool_use`; they then use that one.

    Attributes:
        source, tool_source: the Jinja sources; `tool_source` is None where one template serves all conversations.
        end_of_turn, end_of_turn_id: the control token that ends an assistant's turn.
        appends_end_of_turn: whether it is appended because the template does not write it.
        fingerprint: SHA-256 (hex) of what decides the ids: the sources, the pinned date where a template reads the
            date, the end-of-turn token where the template does not write it, and the header that stands in for a
            generation prompt.

    Args:
        source: Jinja source; None takes the tokenizer's own.
        end_of_turn: for a template that writes no control token after an answer: the one to teach there.

    Raises:
        UserError: saying why the template cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None, end_of_turn: str | None = None):
        self._arguments = (tokenizer, source, end_of_turn)
        self.tool_source = tokenizer.named_templates.get("tool_use") if source is None else None
        source = tokenizer.chat_template if source is None else source
        if source is None:
            choices = ", ".join((*tokenizer.named_templates, *BUNDLED_TEMPLATES))
            raise UserError("the tokenizer folder has no chat template (tokenizer_config.json, chat_template)"
                            + " of the name default" * bool(tokenizer.named_templates)
                            + f"; --chat_template takes {choices} or a file")
        self.tokenizer, self.source = tokenizer, source.removeprefix("\ufeff")

        self._template = self._tool_template = MarkedTemplate(tokenizer, self.source)
        if self.tool_source is not None:
            self._tool_template = MarkedTemplate(tokenizer, self.tool_source)
        self._fields = {template: RenderedFields(template.probe_text)
                        for template in (self._template, self._tool_template)}
        # Found by looking at a rendering; until then a turn ends where its rendering does.
        self.end_of_turn, self.appends_end_of_turn = None, False
        found = {self._find_end_of_turn(template, end_of_turn) for template in (self._template, self._tool_template)}
        if len(found) > 1:
            ends = " and ".join(repr(end) for end, _ in sorted(found))
            raise UserError(f"chat template: default and tool_use do not end an answer with the same token ({ends})")
        ((self.end_of_turn, self.appends_end_of_turn),) = found
        self.end_of_turn_id = tokenizer.token_to_id(self.end_of_turn)
        self.fingerprint = self._fingerprint()

    def __reduce__(self):
        return ChatTemplate, self._arguments

    def render(self, messages: Sequence[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False,
               thinking: bool | None = None) -> str:
        """The plain text; `thinking` None leaves the template its own default.

        Raises:
            UserError: if the template refuses the conversation.
        """
        request = Request(len(messages), add_generation_prompt, thinking)
        return self._template_for(tools).plain_texts(_visible(messages), tools, [request], "the conversation")[0]

    def generation_prompt_ids(self, messages: Sequence[dict], tools: list[dict] | None = None,
                              thinking: bool = False) -> list[int]:
        """What a model is to see before its next answer; id for id what `encode` lets it see there in training.

        Raises:
            UserError: as `encode`.
        """
        conversation = Conversation(tuple(messages), tools, "the conversation")
        turns, prompt, marks = self._turns_and_prompt(conversation, thinking)
        self._refuse_lost_fields(conversation, len(messages))
        pieces = cut_at_answers(prompt, turns, [False] * len(turns), len(turns), learn_prompt=False)
        (encoded,) = tokenize([MarkedSequence(pieces, marks)])
        return encoded.input_ids.tolist()

    def encode(self, conversation: Conversation, supervise: Supervision = ALL_TURNS) -> list[TokenSequence]:
        """The sequences that teach the assistant's turns, each turn in exactly one of them.

        Several turns share a sequence as long as the template renders the earlier ones as it did when they were last.
        Sequences in which nothing is supervised are left out; apart from that `supervise` has no influence on the ids.

        Raises:
            UserError: at the row's place, if the template refuses it, prompts for an answer otherwise than it renders
                it, does not render one of its fields, or cannot be kept from confusing the data with its own control
                tokens.
        """
        (result,) = self.encode_batch([conversation], supervise)
        if isinstance(result, UserError):
            raise result
        return result

    def encode_batch(self, conversations: Iterable[Conversation],
                   supervise: Supervision = ALL_TURNS) -> list[list[TokenSequence] | UserError]:
        """What `encode` returns or raises for each of the conversations, in less time."""
        outcomes = [self._sequences(conversation, supervise) for conversation in conversations]
        marked = [sequence for outcome in outcomes if isinstance(outcome, list) for sequence in outcome]
        encoded = iter(tokenize(marked))
        results: list[list[TokenSequence] | UserError] = []
        for outcome in outcomes:
            if isinstance(outcome, UserError):
                results.append(outcome)
                continue
            sequences = [next(encoded) for _ in outcome]
            if supervise.prompt:
                sequences = learn_once(sequences)
            results.append(sequences)
        return results

    def prompt_mismatches(self, conversation: Conversation) -> list[str]:
        """Where a turn is not taught after exactly the ids that a chat shows the model at that point; a line for each.

        Empty if all is well. Compares what `encode` gives with what `generation_prompt_ids` gives; of a conversation
        of more than `MAX_COMPARED` answers those of the first half and the last ones, as each of them renders all that
        is before it.

        Raises:
            UserError: as `encode`.
        """
        messages, tools = conversation.messages, conversation.tools
        sequences = self.encode(replace(conversation, messages=tuple(_visible(messages))))
        taught = [sequence.input_ids[:start].tolist() for sequence in sequences
                  for start in np.flatnonzero(np.diff(sequence.supervised, prepend=False) & sequence.supervised)]
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(taught) != len(indices):
            return [f"{conversation.place}: {len(indices)} assistant turns became {len(taught)} supervised stretches"]
        mismatches = []
        half = MAX_COMPARED // 2
        compared = list(zip(indices, taught, strict=True))
        if len(compared) > MAX_COMPARED:
            compared = compared[:half] + compared[-half:]
        for index, before in compared:
            prompt = self.generation_prompt_ids(messages[:index], tools, has_reasoning(messages[index]))
            if before != prompt:
                trained, chatted = (self.tokenizer.decode(ids)[-40:] for ids in (before, prompt))
                mismatches.append(f"{conversation.place}: {conversation.turn_name(index)}: taught after {len(before)} "
                                  f"ids ...{trained!r}, while a chat shows {len(prompt)} ids ...{chatted!r}")
        return mismatches

    def _sequences(self, conversation: Conversation,
                   supervise: Supervision) -> list[MarkedSequence] | UserError:
        """All sequences of a row in pieces, or why there are none."""
        messages = conversation.messages
        try:
            turns, _, marks = self._turns_and_prompt(conversation, None)
            for index, message in enumerate(messages):
                if message["role"] == "assistant":
                    self._refuse_lost_fields(conversation, index + 1)
        except UserError as error:
            return error
        chosen = [message.get("train", True) for message in messages if message["role"] == "assistant"]
        if supervise.turns == "last":
            chosen[:-1] = [False] * (len(chosen) - 1)
        sequences, first = [], 0
        for index, turn in enumerate(turns):
            if index + 1 < len(turns) and self._shares_sequence(turn, turns[index + 1]):
                continue
            if self.appends_end_of_turn:
                turn = turn._replace(answered=turn.answered + marks.of_token[self.end_of_turn])
            pieces = cut_at_answers(turn.answered + turn.rest, [*turns[:index], turn], chosen, first, supervise.prompt)
            if any(piece.supervised for piece in pieces):
                sequences.append(MarkedSequence(pieces, marks))
            first = index + 1
        return sequences

    def _shares_sequence(self, turn: Turn, following: Turn) -> bool:
        return following.prompt.startswith(turn.answered) and not self.appends_end_of_turn

    @property
    def sources(self) -> tuple[str, ...]:
        """The Jinja sources of all templates in use."""
        return (self.source,) if self.tool_source is None else (self.source, self.tool_source)

    @property
    def notes(self) -> list[str]:
        """Whatever a person should know about the template, a line each."""
        notes = [f"it has no generation prompt; answers are asked for with {template.header!r}, which it writes before "
                 "each of them" for template in self._fields if template.header]
        if self._tool_template is not self._template:
            notes.append("conversations with tools use the tokenizer's tool_use template")
        return notes

    def _template_for(self, tools: list[dict] | None) -> MarkedTemplate:
        return self._tool_template if tools else self._template

    def _fingerprint(self) -> str:
        parts = []
        appended = self.end_of_turn if self.appends_end_of_turn else ""
        for template, source in zip(self._fields, self.sources, strict=True):
            date = PINNED_DATE.date().isoformat() if "strftime_now" in source else ""
            header = [template.header] if template.header else []
            parts.append(json.dumps([source, date, appended, *header]) if date or appended or header else source)
        decisive = parts[0] if len(parts) == 1 else json.dumps(parts)
        return hashlib.sha256(decisive.encode()).hexdigest()

    def _refuse_lost_fields(self, conversation: Conversation, end: int) -> None:
        """
        Raises:
            UserError: naming a field that is not rendered of the last turn of the first `end` messages.
        """
        tools = conversation.tools
        lost = self._fields[self._template_for(tools)].first_lost(conversation.messages[:end], tools)
        if lost is not None:
            name = lost.name if lost.index is None else conversation.name(lost.index, lost.name)
            has_chatml = {"<|im_start|>", "<|im_end|>"}.issubset(self.tokenizer.added_tokens)
            raise UserError(f"{conversation.place}: {name}: the chat template does not render {lost.label}, so the "
                            "model would not see what the row says; --chat_template names one that does"
                            f"{', such as chatml' if has_chatml else ''}")

    def _find_end_of_turn(self, template: MarkedTemplate, wanted: str | None) -> tuple[str, bool]:
        """The token that ends a turn, and whether it has to be appended because the template does not write it."""
        requests = [Request(1, True, False), Request(2, False, False)]
        place = "chat template, tried on one question and its answer"
        (prompt, full), marks = template.marked_texts(PROBE, None, requests, place)
        turn = self._turn(prompt, full, marks, f"{place}: conversations[1]")
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

    def _turns_and_prompt(self, conversation: Conversation, thinking: bool | None) -> tuple[list[Turn], str, Marks]:
        """The assistant's turns and, unless `thinking` is None, the prompt for another one (else ""), marked."""
        messages, tools, place = conversation.messages, conversation.tools, conversation.place
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        requests = []
        for index in indices:
            reasons = has_reasoning(messages[index])
            requests += [Request(index, True, reasons), Request(index + 1, False, reasons)]
        if thinking is not None:
            requests.append(Request(len(messages), True, thinking))
        texts, marks = self._template_for(tools).marked_texts(_visible(messages), tools, requests, place)
        turns = [self._turn(prompt, full, marks, f"{place}: {conversation.turn_name(index)}")
                 for index, prompt, full in zip(indices, texts[0::2], texts[1::2], strict=False)]
        return turns, texts[-1] if thinking is not None else "", marks

    def _turn(self, prompt: str, full: str, marks: Marks, place: str) -> Turn:
        """
        Raises:
            UserError: if the answered conversation does not begin with the prompt.
        """
        if not full.startswith(prompt):
            raise UserError(f"{place}: {_mismatch(prompt, full, marks)}")
        end_mark = marks.of_token.get(self.end_of_turn)
        position = full.find(end_mark, len(prompt)) if end_mark else -1
        end = len(full) if position < 0 else position + 1
        return Turn(prompt, full[:end], full[end:])


def _visible(messages: Sequence[dict]) -> list[dict]:
    """What the template may see of the messages: whether a turn is trained must not change what the model sees."""
    return [{name: value for name, value in message.items() if name != "train"} for message in messages]


def make_template(tokenizer: Tokenizer, choice: str | None = None, end_of_turn: str | None = None) -> ChatTemplate:
    """The template that `--chat_template` and `--end_of_turn` ask for.

    Args:
        choice: one of the tokenizer's templates by name, one of `BUNDLED_TEMPLATES`, or a file; None takes the
            tokenizer's own.

    Raises:
        UserError: if there is no such template, or as `ChatTemplate`.
    """
    if choice is None:
        return ChatTemplate(tokenizer, None, end_of_turn)
    return ChatTemplate(tokenizer, tokenizer.named_templates.get(choice) or _template_source(choice), end_of_turn)


def _template_source(choice: str) -> str:
    if choice in BUNDLED_TEMPLATES:
        return (files("minimind_sft.data") / f"{choice}.jinja").read_text(encoding="utf-8")
    path = Path(choice)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"--chat_template {choice}: expected {', '.join(BUNDLED_TEMPLATES)} or a file with a Jinja "
                        "template, found neither") from error
    except OSError as error:
        raise UserError(f"--chat_template {choice}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--chat_template {choice}: not valid UTF-8 (byte {error.start + 1})") from error


def has_reasoning(message: dict) -> bool:
    """Whether an assistant's message holds reasoning: in its own field, or between tags in the content."""
    if message.get("reasoning_content"):
        return True
    before, tag, _ = message["content"].partition("</think>")
    return bool(tag and before.rpartition("<think>")[2].strip())


def _mismatch(prompt: str, full: str, marks: Marks) -> str:
    """Where a prompt and the rendering of the answered conversation part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
    asked, rendered = (marks.spelled(text[max(at - 20, 0):at + 20]) for text in (prompt, full))
    return (f"the chat template prompts for this answer with ...{asked!r}, but renders it as ...{rendered!r}: a model "
            "would not see in training what it sees when it chats")
