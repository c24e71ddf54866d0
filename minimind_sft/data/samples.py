"""What becomes of a row: the samples that it gives, cut to the length that a model is trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Protocol

from minimind_sft.config import TRUNCATIONS
from minimind_sft.data.chat_template import ALL_TURNS, ChatTemplate, Encoded, Supervision
from minimind_sft.data.conversation import Conversation, parse_row, parse_text
from minimind_sft.data.example import Example, make_example
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.labels import IGNORE_INDEX

MOST_CHARACTERS = 1_000_000


class EncodedRow(NamedTuple):
    """The samples of a row, none where it keeps nothing to learn; `was_cut` says that some of it was left out."""

    samples: list[list[Example]]
    was_cut: bool


class TracedRow(NamedTuple):
    """What a row became on its way.

    parsed: a Conversation, or running text.
    sequences: of a conversation, before anything is cut.
    """

    parsed: Conversation | str
    sequences: list[Encoded]
    encoded: EncodedRow


class RowEncoder(Protocol):
    """Makes samples of rows; `settings` is all that decides which."""

    settings: dict[str, Any]
    tokenizer: Tokenizer

    def encode(self, rows: Sequence[tuple[str, dict]]) -> list[EncodedRow | UserError]:
        """What becomes of each row of `(place, row)` pairs."""

    def trace(self, rows: Sequence[tuple[str, dict]]) -> list[TracedRow | UserError]:
        """As `encode`, with what the row was in between."""


class SFTRows:
    """Conversations, supervised on the assistant's own words and its end-of-turn token; text, on all of its tokens.

    Args:
        max_seq_len: longest sequence in tokens.
        truncation: what becomes of a longer conversation. "tail": its tail is cut, and no end-of-turn put in its place;
            "turns": the longest run of whole turns that fits stays, with the system turn; "drop": nothing stays.
    """

    def __init__(self, template: ChatTemplate, max_seq_len: int, truncation: str = "tail",
                 supervision: Supervision = ALL_TURNS):
        assert truncation in TRUNCATIONS, truncation
        self.template, self.tokenizer = template, template.tokenizer
        self.max_seq_len, self.truncation, self.supervision = max_seq_len, truncation, supervision
        self._text = PretrainRows(template.tokenizer, max_seq_len)
        self.settings = {"rows": "conversations", "tokenizer": self.tokenizer.fingerprint,
                         "chat_template": template.fingerprint, "max_seq_len": max_seq_len, "truncation": truncation,
                         **{f"supervised_{name}": value for name, value in asdict(supervision).items()}}

    def encode(self, rows: Sequence[tuple[str, dict]]) -> list[EncodedRow | UserError]:
        return _encoded(self.trace(rows))

    def trace(self, rows: Sequence[tuple[str, dict]]) -> list[TracedRow | UserError]:
        parsed: list[Conversation | str | UserError] = []
        for place, row in rows:
            try:
                parsed.append(parse_row(row, place))
            except UserError as error:
                parsed.append(error)
        conversations = [one for one in parsed if isinstance(one, Conversation)]
        sequences = iter(self.template.encode_all(conversations, self.supervision))
        return [self._conversation(one, next(sequences)) if isinstance(one, Conversation)
                else self._text.trace_text(one, place) if isinstance(one, str) else one
                for one, (place, _) in zip(parsed, rows, strict=True)]

    def _conversation(self, conversation: Conversation,
                      sequences: list[Encoded] | UserError) -> TracedRow | UserError:
        if isinstance(sequences, UserError):
            return sequences
        try:
            return TracedRow(conversation, sequences, self._cut(conversation, sequences))
        except UserError as error:  # a template may refuse a part of what it renders as a whole
            return error

    def _cut(self, conversation: Conversation, sequences: list[Encoded]) -> EncodedRow:
        fits = all(len(sequence.input_ids) <= self.max_seq_len for sequence in sequences)
        if not fits and self.truncation == "turns":
            if self.supervision.turns == "last":
                conversation = _with_last_turn_learned(conversation)
            sequences = longest_run_of_turns(self.template, conversation, self.max_seq_len, self.supervision)
        elif not fits and self.truncation == "drop":
            sequences = []
        examples = [make_example(sequence.input_ids[:self.max_seq_len], sequence.supervised[:self.max_seq_len])
                    for sequence in sequences]
        examples = [example for example in examples if (example.labels != IGNORE_INDEX).any()]
        return EncodedRow([examples] if examples else [], not fits)


class PretrainRows:
    """Texts, each ended by `<|endoftext|>`, supervised on every token but the first.

    A text longer than `max_seq_len` tokens is chunked, not cut: consecutive chunks share one token, so that every
    token after the first is predicted once. Each chunk is a sample.
    """

    def __init__(self, tokenizer: Tokenizer, max_seq_len: int):
        self.tokenizer, self.max_seq_len = tokenizer, max_seq_len
        self.settings = {"rows": "text", "tokenizer": tokenizer.fingerprint, "max_seq_len": max_seq_len}

    def encode(self, rows: Sequence[tuple[str, dict]]) -> list[EncodedRow | UserError]:
        return _encoded(self.trace(rows))

    def trace(self, rows: Sequence[tuple[str, dict]]) -> list[TracedRow | UserError]:
        traced: list[TracedRow | UserError] = []
        for place, row in rows:
            try:
                traced.append(self.trace_text(parse_text(row, place), place))
            except UserError as error:
                traced.append(error)
        return traced

    def trace_text(self, text: str, place: str) -> TracedRow | UserError:
        try:
            ids = [token for part in text_parts(text) for token in self.tokenizer.encode_text(part)]
        except UserError as error:
            return UserError(f"{place}: text: {error}")
        ids.append(self.tokenizer.end_of_document_id)
        chunks = (ids[start:start + self.max_seq_len] for start in range(0, len(ids) - 1, self.max_seq_len - 1))
        return TracedRow(text, [], EncodedRow([[make_example(chunk, [True] * len(chunk))] for chunk in chunks], False))


def text_parts(text: str) -> Iterator[str]:
    """A long text in parts of at most `MOST_CHARACTERS`, where possible ended by a line or a word: making tokens of it
    takes some 200 bytes a character."""
    start = 0
    while start < len(text):
        end = min(start + MOST_CHARACTERS, len(text))
        if end < len(text):
            end = next((at + 1 for mark in ("\n", " ") if (at := text.rfind(mark, start, end)) > start), end)
        yield text[start:end]
        start = end


def _encoded(rows: list[TracedRow | UserError]) -> list[EncodedRow | UserError]:
    return [row.encoded if isinstance(row, TracedRow) else row for row in rows]


def _with_last_turn_learned(conversation: Conversation) -> Conversation:
    """The other assistant's turns flagged: the last turn of a part of the conversation need not be its last one."""
    messages = list(conversation.messages)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index in answers[:-1]:
        messages[index] = {**messages[index], "train": False}
    return replace(conversation, messages=tuple(messages))


def longest_run_of_turns(template: ChatTemplate, conversation: Conversation, max_seq_len: int,
                         supervision: Supervision = ALL_TURNS) -> list[Encoded]:
    """The sequences of the longest run of whole turns of which none exceeds `max_seq_len`; [] where no run fits.

    A run begins with a question and ends with an answer; the system turn is kept before it. Of two runs with as many
    messages the earlier one.

    A run that does not fit does not fit with more turns either, so both ends only ever move forward.
    """
    messages = conversation.messages
    opening = messages[:1] if messages[0]["role"] == "system" else ()
    roles = [message["role"] for message in messages]
    starts = [i for i, role in enumerate(roles) if role == "user" and (i == 0 or roles[i - 1] != "user")]
    ends = [i + 1 for i, role in enumerate(roles) if role == "assistant"]
    best: list[Encoded] = []
    longest = next_end = 0
    for start in starts:
        while next_end < len(ends):
            end = ends[next_end]
            if end - start > longest:
                names = (*conversation.names[:len(opening)], *conversation.names[start:end])
                run = replace(conversation, messages=(*opening, *messages[start:end]), names=names)
                sequences = template.encode(run, supervision)
                if any(len(sequence.input_ids) > max_seq_len for sequence in sequences):
                    break
                if sequences:  # none where all of its turns are flagged as not to be learned
                    best, longest = sequences, end - start
            next_end += 1
    return best
