"""Turns rows into training samples, none longer than `max_seq_len` tokens."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from minimind_sft.data.chat_template import ALL_TURNS, ChatTemplate, Supervision
from minimind_sft.data.conversation import Conversation, parse_row, parse_text
from minimind_sft.data.example import Example, make_example
from minimind_sft.data.pieces import MAX_BYTES, MAX_CHARACTERS, TokenSequence
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.settings.data import TRUNCATIONS

T = TypeVar("T")

MAX_RENDERED_RUNS, MESSAGE_COST = 200_000_000, 50
"""Answers times characters of all runs of turns that are tried for one conversation. Each message counts as so many
characters more, which take as long to render."""


class EncodedRow(NamedTuple):
    """One row as training sees it, with the steps on the way.

    samples: the row's samples, each one or more Examples; empty if nothing is left to learn.
    was_cut: whether part of the row was left out.
    parsed: the row as a Conversation, or its running text.
    sequences: the conversation's sequences before any cut; empty for running text.
    """

    samples: list[list[Example]]
    was_cut: bool
    parsed: Conversation | str
    sequences: Sequence[TokenSequence] = ()


class RowEncoder(Protocol):
    """Turns rows into samples. `settings` holds everything that decides which samples a row gives."""

    settings: dict[str, Any]
    tokenizer: Tokenizer

    def encode(self, rows: Sequence[tuple[str, dict]]) -> list[EncodedRow | UserError]:
        """Encodes `(place, row)` pairs; returns an error in place of each row that cannot be used."""


class SFTEncoder:
    """Encodes conversations and running text.

    A conversation is supervised on the assistant's words and end-of-turn tokens, running text on every token.

    Args:
        max_seq_len: longest sequence in tokens.
        truncation: how a longer conversation is shortened. "tail" cuts its end and adds no end-of-turn token; "turns"
            keeps the longest run of whole turns that fits, and the system turn; "drop" drops the conversation.
    """

    def __init__(self, template: ChatTemplate, max_seq_len: int, truncation: str = "tail",
                 supervision: Supervision = ALL_TURNS):
        assert truncation in TRUNCATIONS, truncation
        self.template, self.tokenizer = template, template.tokenizer
        self.max_seq_len, self.truncation, self.supervision = max_seq_len, truncation, supervision
        self._text = PretrainEncoder(template.tokenizer, max_seq_len)
        self.settings = {"rows": "conversations", "tokenizer": self.tokenizer.fingerprint,
                         "chat_template": template.fingerprint, "max_seq_len": max_seq_len, "truncation": truncation,
                         **begins_with_bos(self.tokenizer),
                         **{f"supervised_{name}": value for name, value in asdict(supervision).items()}}

    def encode(self, rows: Sequence[tuple[str, dict]]) -> list[EncodedRow | UserError]:
        encoded: list[Any] = []
        for place, row in rows:
            try:
                parsed = parse_row(row, place)
                encoded.append(self._text.encode_text(parsed, place) if isinstance(parsed, str) else parsed)
            except UserError as error:
                encoded.append(error)
        conversations = {index: one for index, one in enumerate(encoded) if isinstance(one, Conversation)}
        sequences = self.template.encode_batch(conversations.values(), self.supervision)
        for (index, conversation), of_one in zip(conversations.items(), sequences, strict=True):
            try:
                encoded[index] = of_one if isinstance(of_one, UserError) else self._fit(conversation, of_one)
            except UserError as error:  # the template may refuse a part of what it renders as a whole
                encoded[index] = error
        return encoded

    def _fit(self, conversation: Conversation, sequences: list[TokenSequence]) -> EncodedRow:
        """Shortens what exceeds `max_seq_len`, and drops sequences that keep no supervised token."""
        kept, fits = sequences, all(len(sequence.input_ids) <= self.max_seq_len for sequence in sequences)
        if not fits and self.truncation == "turns":
            if self.supervision.turns == "last":
                conversation = _with_last_turn_learned(conversation)
            kept = longest_run_of_turns(self.template, conversation, self.max_seq_len, self.supervision)
        elif not fits and self.truncation == "drop":
            kept = []
        examples = [make_example(sequence.input_ids[:self.max_seq_len], sequence.supervised[:self.max_seq_len])
                    for sequence in kept]
        examples = [example for example in examples if (example.labels != IGNORE_INDEX).any()]
        return EncodedRow([examples] if examples else [], not fits, conversation, sequences)


class PretrainEncoder:
    """Encodes running text: each text ends with `<|endoftext|>` and is supervised on every token but the first.

    With a tokenizer that `adds_bos`, each text begins with it.

    A text longer than `max_seq_len` tokens is split into chunks, each a sample of its own. Consecutive chunks share
    one token, so that every token after the first is predicted exactly once.
    """

    def __init__(self, tokenizer: Tokenizer, max_seq_len: int):
        self.tokenizer, self.max_seq_len = tokenizer, max_seq_len
        self.settings = {"rows": "text", "tokenizer": tokenizer.fingerprint, "max_seq_len": max_seq_len,
                         **begins_with_bos(tokenizer)}

    def encode(self, rows: Sequence[tuple[str, dict]]) -> list[EncodedRow | UserError]:
        encoded: list[EncodedRow | UserError] = []
        for place, row in rows:
            try:
                text = parse_text(row, place)
            except UserError as error:
                encoded.append(error)
                continue
            encoded.append(self.encode_text(text, place))
        return encoded

    def encode_text(self, text: str, place: str) -> EncodedRow | UserError:
        """Encodes the text of the row at `place`; returns an error if it uses up the characters that marks need."""
        try:
            ids = text_ids(self.tokenizer, text, place, self.tokenizer.before_text,
                           [self.tokenizer.end_of_document_id])
        except UserError as error:
            return error
        chunks = (ids[start:start + self.max_seq_len] for start in range(0, len(ids) - 1, self.max_seq_len - 1))
        return EncodedRow([[Example(chunk[:-1], chunk[1:])] for chunk in chunks], False, text)


def begins_with_bos(tokenizer: Tokenizer) -> dict[str, bool]:
    """Returns the part of an encoder's settings that says so, if texts do; the fingerprint of a tokenizer does not."""
    return {"begins_with_bos": True} if tokenizer.adds_bos else {}


def text_ids(tokenizer: Tokenizer, text: str, place: str, before: Sequence[int] = (),
             after: Sequence[int] = ()) -> np.ndarray:
    """Returns the ids of running text of any length, int32, in which nothing becomes a control token.

    Args:
        before, after: ids that are put there.

    Raises:
        UserError: names the place, if the text uses up the characters that marks need.
    """
    try:
        parts = [np.array(tokenizer.encode_ordinary(part, inside=number > 0), np.int32)
                 for number, part in enumerate(text_parts(text))]
    except UserError as error:
        raise UserError(f"{place}: text: {error}") from error
    return np.concatenate([np.array(before, np.int32), *parts, np.array(after, np.int32)])


def text_parts(text: str) -> Iterator[str]:
    """Splits a long text into parts of at most `MAX_CHARACTERS` and `MAX_BYTES`, at the end of a line or a word where
    possible."""
    start = 0
    while start < len(text):
        end = min(start + MAX_CHARACTERS, len(text))
        if 4 * (end - start) > MAX_BYTES and len(text[start:end].encode()) > MAX_BYTES:
            end = start + MAX_BYTES // 4
        if end < len(text):
            end = next((at + 1 for mark in ("\n", " ") if (at := text.rfind(mark, start, end)) > start), end)
        yield text[start:end]
        start = end


def _with_last_turn_learned(conversation: Conversation) -> Conversation:
    """Flags all assistant turns but the last as not learned: the last turn of a run may be an earlier one."""
    messages = list(conversation.messages)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index in answers[:-1]:
        messages[index] = {**messages[index], "train": False}
    return replace(conversation, messages=tuple(messages))


def longest_run_of_turns(template: ChatTemplate, conversation: Conversation, max_seq_len: int,
                         supervision: Supervision) -> list[TokenSequence]:
    """Returns the sequences of the longest run of whole turns that fits `max_seq_len`; [] if none fits.

    A run begins with a question and ends with an answer, and keeps the system turn before it. Of two runs with equally
    many messages the earlier one wins. A run that is too long stays too long with more turns.

    Raises:
        UserError: if finding it would take too long.
    """
    messages = conversation.messages
    opening = messages[:1] if messages[0]["role"] == "system" else ()
    roles = [message["role"] for message in messages]
    starts = [i for i, role in enumerate(roles) if role == "user" and (i == 0 or roles[i - 1] != "user")]
    ends = [i + 1 for i, role in enumerate(roles) if role == "assistant"]
    best: list[TokenSequence] = []
    longest = rendered = 0

    def encoded(start: int, end: int) -> list[TokenSequence] | None:
        """Returns the sequences of the messages from `start` to `end`; None if they do not fit."""
        nonlocal rendered
        characters = sum(MESSAGE_COST + len(message["content"]) for message in messages[start:end])
        rendered += roles[start:end].count("assistant") * characters
        if rendered > MAX_RENDERED_RUNS:
            raise UserError(f"{conversation.place}: expected a shorter conversation: --truncation turns would render "
                            "too many runs of its turns (--truncation tail or drop renders it once)")
        names = (*conversation.names[:len(opening)], *conversation.names[start:end])
        run = replace(conversation, messages=(*opening, *messages[start:end]), names=names)
        sequences = template.encode(run, supervision)
        return None if any(len(sequence.input_ids) > max_seq_len for sequence in sequences) else sequences

    for start in starts:
        longer = ends[bisect_right(ends, start + longest):]
        index, sequences = _last_that_fits(lambda index: encoded(start, longer[index]), len(longer))  # noqa: B023
        if sequences:  # empty if all of its turns are flagged as not learned
            best, longest = sequences, longer[index] - start
    return best


def _last_that_fits(fitting: Callable[[int], T | None], count: int) -> tuple[int, T | None]:
    """Returns the last index that fits and what is found there, or (-1, None); what follows a misfit does not fit.

    Tries few indices beyond the last one.
    """
    last, found, step, grows = -1, None, 1, True
    while step:
        tried = fitting(last + step) if last + step < count else None
        if tried is not None:
            last, found = last + step, tried
        grows = grows and tried is not None
        step = step * 2 if grows else step // 2
    return last, found
