"""Grammars that answers of one model follow, token by token.

llguidance (https://github.com/guidance-ai/llguidance) tells which tokens may come next, in a few microseconds each, so
it needs no thread of its own. It gets the bytes of our tokens; control tokens are none, so text can never hold one.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from minimind_sft.data.token_bytes import TokenBytes
from minimind_sft.errors import UserError, one_line, rust_failures
from minimind_sft.inference.chat import THINK_END, THINK_START
from minimind_sft.inference.loading import Loaded
from minimind_sft.inference.stopping import chat_stop_ids
from minimind_sft.serving.problems import invalid, unsupported

if TYPE_CHECKING:
    import llguidance

Asked = TypeVar("Asked")

Reasoning = Literal["none", "open", "possible"]
"""Whether the answer goes on with reasoning that the prompt opened, and whether it may open some itself."""

JSON_OPTIONS = {"whitespace_pattern": r"[ ]|\n {0,32}", "json_allowed_escapes": r'nrtbf\"'}
"""Between two parts of JSON are a space, an indented new line or nothing: with more, small models never end. Letters
are not written as escapes, under which a name of a property would not be recognised."""
MAX_LEXER_STATES = 50_000
"""For texts whose length, pattern or format counts; some hundred bytes each."""
MAX_ALTERNATIVES = 10_000
"""At one place of an answer: a step with so many takes about 20 ms."""
AHEAD = 64
"""Characters that are cut into tokens at once where only one text can follow."""
ONE_OF = ("oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf",
          "the parts of oneOf do not clearly exclude each other; anyOf need not")
"""A reason of llguidance that speaks of its own options, and what to say instead."""
SOURCE = re.compile(r"\n\s*\d+ \| |<non-verbose/>")
"""Where llguidance's reasons go on with the rules."""
MAX_REASON = 200
"""Characters of a reason by llguidance that a message shows."""


class Constraint:
    """Says which tokens may come next in one answer."""

    def __init__(self, matcher: "llguidance.LLMatcher", vocab_size: int):
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed_V(self) -> Tensor:
        """Returns which tokens may come next (V,).

        Raises:
            UserError: if the grammar takes too long.
        """
        bits = np.frombuffer(self._ask(self._matcher.compute_bitmask), np.uint8)
        return torch.from_numpy(np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_))

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen.

        Raises:
            UserError: if the grammar takes too long, or does not allow it.
        """
        self._ask(lambda: self._matcher.consume_token(token))

    def _ask(self, question: Callable[[], Asked]) -> Asked:
        """Returns the matcher's answer.

        Raises:
            UserError: if it failed. That nothing can follow is no failure.
        """
        try:
            answer, reason = question(), ""
            if self._matcher.is_error() and self._matcher.stop_reason() != "NoExtensionBias":
                reason = _reason(self._matcher)
        except rust_failures() as error:  # a panic must not end the thread that answers everyone
            reason = one_line(error)[:MAX_REASON]
        if reason:
            raise UserError(f"the answer cannot be made to follow its format any further: {reason}")
        return answer


class Grammar:
    """A compiled grammar, which all answers to one request follow.

    They share the states of their texts, and so the limit of these: a grammar is compiled once for all of them.
    """

    def __init__(self, matcher: "llguidance.LLMatcher", vocab_size: int):
        self._matcher, self._vocab_size = matcher, vocab_size

    def constraint(self) -> Constraint:
        """Returns the constraint of another answer."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)


class Grammars:
    """Makes grammars for one model."""

    def __init__(self, loaded: Loaded):
        self._loaded = loaded

    def compile(self, body: str, reasoning: Reasoning, place: str) -> Grammar:
        """Makes a grammar of rules in llguidance's variant of Lark.

        Args:
            body: the rules; `body` is what the answer holds after reasoning.
            place: the field of the request that asks for it.

        Raises:
            ApiProblem: if there is no such grammar, or if no answer follows it.
        """
        import llguidance

        limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, max_items_in_row=MAX_ALTERNATIVES,
                                           verbose_errors=False)
        matcher = llguidance.LLMatcher(self._tokens, self._start(reasoning) + body, log_level=0, limits=limits)
        if matcher.is_error():
            raise unsupported(place, f"answers cannot be made to follow it: {_reason(matcher)}")
        made = Grammar(matcher, self._vocab_size)
        try:
            possible = bool(made.constraint().allowed_V().any())
        except UserError:
            possible = False
        if not possible:
            raise invalid(place, "no answer can follow it")
        return made

    def literal(self, text: str) -> str:
        """Returns the rule for a text as the model writes it, with the control tokens in it."""
        return " ".join(f"<[{self._control[part]}]>" if part in self._control else quoted(part)
                        for part in self._at_control.split(text) if part) or '""'

    def without(self, mark: str) -> str:
        """Returns the regular expression of any text without a mark; a control token is in no text."""
        if self._control and self._at_control.search(mark):
            return "/(?s:.*)/"
        return f"/(?s:.*)/ & ~/(?s:.*){_pattern(mark)}(?s:.*)/"

    def until(self, name: str, end: str) -> str:
        """Returns the rule of that name for any text up to the next `end`, which is part of it."""
        text, *control = self._at_control.split(end, 1)
        if control:
            return f"{name}: /(?s:.*){_pattern(text)}/ {self.literal(''.join(control))}\n"
        return f"{name}[lazy]: /(?s:.*){_pattern(text)}/\n"

    def _start(self, reasoning: Reasoning) -> str:
        """Returns the rules for what is before the `body`."""
        # Some tokenizers write a text's first word with a space, which they leave out when they decode it.
        space = '' if self._loaded.tokenizer.marks().prefix == "none" else '" "? '
        if reasoning == "none":
            return f"start: {space}body\n"
        opened = "reasoning" if reasoning == "open" else f"({self.literal(THINK_START)} reasoning)?"
        return (f"start: {space}{opened} body\nreasoning: thought GAP\nGAP: /\\n{{0,2}}/\n"
                + self.until("thought", THINK_END))

    @property
    def _vocab_size(self) -> int:
        return self._loaded.model.config.vocab_size

    @cached_property
    def _control(self) -> Mapping[str, int]:
        """Control tokens with their ids."""
        template, tokenizer = self._loaded.template, self._loaded.tokenizer
        source = "" if template is None else "".join(template.complete_sources())
        found = {token: tokenizer.token_to_id(token) for token in tokenizer.control_tokens(source)}
        return {token: token_id for token, token_id in found.items() if token_id is not None}

    @cached_property
    def _at_control(self) -> re.Pattern:
        """Splits a text at its control tokens."""
        return re.compile(f"({'|'.join(map(re.escape, sorted(self._control, key=len, reverse=True)))})")

    @cached_property
    def _tokens(self) -> "llguidance.LLTokenizer":
        import llguidance

        template = self._loaded.template
        assert template is not None, "only chats have formats"
        ends = chat_stop_ids(template, self._loaded.stop_ids)
        spelled = TokenBytes(self._loaded.tokenizer)
        tokens = [spelled.of(token) for token in range(self._vocab_size)]
        unknown = self._loaded.tokenizer.unknown_id
        control = {*self._control.values(), *ends, *([] if unknown is None else [unknown])}
        for token in control:
            tokens[token] = b"\xff" + tokens[token]  # which makes it no text for llguidance
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_TokenList(tokens, control, self._loaded)), n_vocab=self._vocab_size,
            eos_token=sorted(ends), slices=llguidance.LLTokenizer.json_slices())


class _TokenList:
    """A tokenizer as llguidance wants to see it."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: Collection[int], loaded: Loaded):
        assert loaded.template is not None
        self.tokens, self.special_token_ids = tokens, sorted(special)
        self.eos_token_id = loaded.template.end_of_turn_id
        self._encode = loaded.tokenizer.encode_ordinary
        self._id_of = {token: token_id for token_id, token in enumerate(tokens)}
        self._longest = max(map(len, tokens))

    def __call__(self, text: str) -> list[int]:
        """Returns tokens for the beginning of a text: exactly its bytes, and if possible as the model knows them."""
        text = text[:AHEAD]
        ids, wanted = self._encode(text, inside=True), text.encode()
        return ids if b"".join(self.tokens[token] for token in ids) == wanted else self._longest_tokens(wanted)

    def _longest_tokens(self, text: bytes) -> list[int]:
        """Returns the tokens of a text that the tokenizer would change, from its longest beginning on."""
        ids, place = [], 0
        while place < len(text):
            ends = range(min(place + self._longest, len(text)), place, -1)
            end = next((end for end in ends if text[place:end] in self._id_of), None)
            if end is None:
                break  # the vocabulary cannot spell it
            ids.append(self._id_of[text[place:end]])
            place = end
        return ids


def quoted(text: str) -> str:
    """Returns the rule for a text without control tokens."""
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Returns the rule for JSON that follows a schema."""
    return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS})


def _pattern(text: str) -> str:
    """Returns the regular expression of a text, as it stands between slashes."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def _reason(matcher: "llguidance.LLMatcher") -> str:
    said = matcher.get_error().rpartition("failed to compile JSON schema: ")[2].replace(*ONE_OF)
    return one_line(ValueError(SOURCE.split(said)[0]))[:MAX_REASON]
