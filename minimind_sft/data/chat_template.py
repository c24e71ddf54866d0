"""A Conversation becomes token ids and a loss mask; a conversation that waits for an answer becomes a prompt.

Everything here works on marked text (`template_marks`), in which no text of the data can be taken for a control token.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from minimind_sft.data.conversation import Conversation
from minimind_sft.data.template_marks import PINNED_DATE, PROBE, MarkedTemplate, Request
from minimind_sft.data.tokenizer import Marks, Tokenizer
from minimind_sft.errors import UserError

BUNDLED_TEMPLATES = ("chatml", "alpaca")
MOST_COMPARED = 40


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sequence. `supervised[t]` says whether `input_ids[t]` is to be learned; nothing is shifted yet.

    input_ids: int32, [tokens].
    supervised: bool, [tokens].
    """

    input_ids: np.ndarray
    supervised: np.ndarray


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


class Piece(NamedTuple):
    """Marked text that is encoded by itself."""

    text: str
    supervised: bool


class MarkedSequence(NamedTuple):
    """One sequence before it is encoded."""

    pieces: list[Piece]
    marks: Marks


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
        appends_end_of_turn: whether it is appended because the template does not write it.
        fingerprint: SHA-256 (hex) of what decides the ids: the source, the pinned date where the template reads the
            date, and the end-of-turn token where the template does not write it.

    Args:
        source: Jinja source; None takes the tokenizer's own.
        end_of_turn: for a template that writes no control token after an answer: the one to teach there.

    Raises:
        UserError: saying why the template cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None, end_of_turn: str | None = None):
        source = tokenizer.chat_template if source is None else source
        if source is None:
            raise UserError("the tokenizer folder has no chat template (tokenizer_config.json, chat_template); "
                            f"--chat_template takes {', '.join(BUNDLED_TEMPLATES)} or a file")
        self.tokenizer, self.source = tokenizer, source
        self._arguments = (tokenizer, source, end_of_turn)

        self._template = MarkedTemplate(tokenizer, source)
        # Found by looking at a rendering; until then a turn ends where its rendering does.
        self.end_of_turn, self.appends_end_of_turn = None, False
        self.end_of_turn, self.appends_end_of_turn = self._find_end_of_turn(end_of_turn)
        self.end_of_turn_id = tokenizer.token_to_id(self.end_of_turn)

        date = PINNED_DATE.date().isoformat() if "strftime_now" in source else ""
        appended = self.end_of_turn if self.appends_end_of_turn else ""
        decisive = json.dumps([source, date, appended]) if date or appended else source
        self.fingerprint = hashlib.sha256(decisive.encode()).hexdigest()

    def __reduce__(self):
        return ChatTemplate, self._arguments

    def render(self, messages: Sequence[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False,
               thinking: bool | None = None) -> str:
        """The plain text; `thinking` None leaves the template its own default.

        Raises:
            UserError: if the template refuses the conversation.
        """
        request = Request(len(messages), add_generation_prompt, thinking)
        return self._template.plain_texts(_visible(messages), tools, [request], "the conversation")[0]

    def generation_prompt_ids(self, messages: Sequence[dict], tools: list[dict] | None = None,
                              thinking: bool = False) -> list[int]:
        """What a model is to see before its next answer; id for id what `encode` lets it see there in training.

        Raises:
            UserError: as `encode`.
        """
        turns, prompt, marks = self._turns_and_prompt(messages, tools, thinking, "the conversation")
        pieces = _cut(prompt, turns, [False] * len(turns), len(turns), learn_prompt=False)
        (encoded,) = _encode([MarkedSequence(pieces, marks)])
        return encoded.input_ids.tolist()

    def encode(self, conversation: Conversation, supervise: Supervision = ALL_TURNS) -> list[Encoded]:
        """The sequences that teach the assistant's turns, each turn in exactly one of them.

        Several turns share a sequence as long as the template renders the earlier ones as it did when they were last.
        Sequences in which nothing is supervised are left out; apart from that `supervise` has no influence on the ids.

        Raises:
            UserError: at the row's place, if the template refuses it, prompts for an answer otherwise than it renders
                it, or cannot be kept from confusing the data with its own control tokens.
        """
        (result,) = self.encode_all([conversation], supervise)
        if isinstance(result, UserError):
            raise result
        return result

    def encode_all(self, conversations: Iterable[Conversation],
                   supervise: Supervision = ALL_TURNS) -> list[list[Encoded] | UserError]:
        """What `encode` returns or raises for each of the conversations, in less time."""
        outcomes = [self._sequences(conversation, supervise) for conversation in conversations]
        encoded = iter(_encode([sequence for outcome in outcomes if isinstance(outcome, list) for sequence in outcome]))
        results: list[list[Encoded] | UserError] = []
        for outcome in outcomes:
            if isinstance(outcome, UserError):
                results.append(outcome)
                continue
            sequences = [next(encoded) for _ in outcome]
            if supervise.prompt:
                sequences = _learn_once(sequences)
            results.append(sequences)
        return results

    def prompt_mismatches(self, conversation: Conversation) -> list[str]:
        """Where a turn is not taught after exactly the ids that a chat shows the model at that point; a line for each.

        Empty if all is well. Compares what `encode` gives with what `generation_prompt_ids` gives; of a conversation
        of more than `MOST_COMPARED` answers those of the first half and the last ones, as each of them renders all that
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
        half = MOST_COMPARED // 2
        compared = list(zip(indices, taught, strict=True))
        if len(compared) > MOST_COMPARED:
            compared = compared[:half] + compared[-half:]
        for index, before in compared:
            prompt = self.generation_prompt_ids(messages[:index], tools, has_reasoning(messages[index]))
            if before != prompt:
                trained, chatted = (self.tokenizer.decode(ids)[-40:] for ids in (before, prompt))
                mismatches.append(f"{conversation.place}: conversations[{index}]: taught after {len(before)} ids "
                                  f"...{trained!r}, while a chat shows {len(prompt)} ids ...{chatted!r}")
        return mismatches

    def _sequences(self, conversation: Conversation,
                   supervise: Supervision) -> list[MarkedSequence] | UserError:
        """All sequences of a row in pieces, or why there are none."""
        messages, tools, place = conversation.messages, conversation.tools, conversation.place
        try:
            turns, marks = self._turns(messages, tools, place)
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
            pieces = _cut(turn.answered + turn.rest, [*turns[:index], turn], chosen, first, supervise.prompt)
            if any(piece.supervised for piece in pieces):
                sequences.append(MarkedSequence(pieces, marks))
            first = index + 1
        return sequences

    def _shares_sequence(self, turn: Turn, following: Turn) -> bool:
        return following.prompt.startswith(turn.answered) and not self.appends_end_of_turn

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
        texts, marks = self._template.marked_texts(_visible(messages), tools, requests, place)

        turns = []
        end_mark = marks.of_token.get(self.end_of_turn)
        for index, prompt, full in zip(indices, texts[0::2], texts[1::2], strict=False):
            if not full.startswith(prompt):
                raise UserError(f"{place}: conversations[{index}]: {_mismatch(prompt, full, marks)}")
            position = full.find(end_mark, len(prompt)) if end_mark else -1
            end = len(full) if position < 0 else position + 1
            turns.append(Turn(prompt, full[:end], full[end:]))
        return turns, texts[-1] if thinking is not None else "", marks


def _visible(messages: Sequence[dict]) -> list[dict]:
    """What the template may see of the messages: whether a turn is trained must not change what the model sees."""
    return [{name: value for name, value in message.items() if name != "train"} for message in messages]


def _cut(text: str, turns: Sequence[Turn], chosen: Sequence[bool], first: int, learn_prompt: bool) -> list[Piece]:
    """Marked text in pieces; supervised are the `chosen` turns from `first` on and, with `learn_prompt`, all between.

    The text is cut at both ends of every answer, those not learned included, so that no token spans from what a model
    is given into what it says. A turn that the template renders otherwise by now is somewhere in the text before the
    next one's answer; where it was not chosen, that text is not learned.
    """
    pieces, position, between = [], 0, learn_prompt
    for index, turn in enumerate(turns):
        if text.startswith(turn.answered):
            pieces.append(Piece(text[position:len(turn.prompt)], between))
            pieces.append(Piece(text[len(turn.prompt):len(turn.answered)], chosen[index] and index >= first))
            position, between = len(turn.answered), learn_prompt
        elif not chosen[index]:
            between = False
    pieces.append(Piece(text[position:], between))
    return pieces


def _encode(sequences: list[MarkedSequence]) -> list[Encoded]:
    """Ids and masks; the same piece, such as a line's end, is encoded once."""
    ids_of: dict[str, dict[str, list[int]]] = {}
    for marks in {marks.shield: marks for _, marks in sequences}.values():
        texts = list({piece.text: None for pieces, its_marks in sequences if its_marks is marks for piece in pieces})
        encodings = marks.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids_of[marks.shield] = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}

    # All sequences as one: numpy is slow on many short arrays.
    parts = [ids_of[marks.shield][piece.text] for pieces, marks in sequences for piece in pieces]
    part_ends = np.cumsum([0, *map(len, parts)])
    supervised = np.repeat([piece.supervised for pieces, _ in sequences for piece in pieces], np.diff(part_ends))
    input_ids = np.fromiter(chain.from_iterable(parts), np.int32, len(supervised))
    ends = part_ends[np.cumsum([0, *(len(pieces) for pieces, _ in sequences)])]
    return [Encoded(input_ids[start:end], supervised[start:end]) for start, end in pairwise(ends.tolist())]


def _learn_once(sequences: list[Encoded]) -> list[Encoded]:
    """What a sequence has in common with the beginning of the one before it has been learned there; sequences in which
    nothing is left to learn are left out."""
    learned = sequences[:1]
    for before, sequence in pairwise(sequences):
        shorter = min(len(before.input_ids), len(sequence.input_ids))
        differs = np.flatnonzero(before.input_ids[:shorter] != sequence.input_ids[:shorter])
        common = differs[0] if len(differs) else shorter
        supervised = sequence.supervised.copy()
        supervised[:common] = False
        learned.append(Encoded(sequence.input_ids, supervised))
    return [sequence for sequence in learned if sequence.supervised.any()]


def make_template(tokenizer: Tokenizer, choice: str | None = None, end_of_turn: str | None = None) -> ChatTemplate:
    """The template that `--chat_template` and `--end_of_turn` ask for.

    Args:
        choice: one of `BUNDLED_TEMPLATES` or a file; None takes the tokenizer's own.

    Raises:
        UserError: if there is no such template, or as `ChatTemplate`.
    """
    return ChatTemplate(tokenizer, None if choice is None else _template_source(choice), end_of_turn)


def _template_source(choice: str) -> str:
    if choice in BUNDLED_TEMPLATES:
        return (files("minimind_sft.data") / f"{choice}.jinja").read_text(encoding="utf-8")
    path = Path(choice)
    try:
        return path.read_text(encoding="utf-8")
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
