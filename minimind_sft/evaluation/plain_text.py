"""Measures perplexity and bits per byte of plain text: whether a fine-tuned model still knows what it knew before."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_sft.data.conversation import parse_text
from minimind_sft.data.reading import file_kind, read_rows, read_texts
from minimind_sft.data.samples import text_ids
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.evaluation.continuations import Continuation, likelihoods
from minimind_sft.inference.generate import LanguageModel

DEFAULT_CONTEXT = 1024
"""Tokens that the model reads at most, if the user does not say."""
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts texts; every token of a text is predicted once.

    log_likelihood: of all texts, in nats.
    """

    log_likelihood: float
    texts: int
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy of a token, in nats."""
        return -self.log_likelihood / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits that a byte of the text (UTF-8) costs, which compares models with different tokenizers."""
        return -self.log_likelihood / math.log(2) / self.bytes

    def as_json(self) -> dict[str, Any]:
        return {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte,
                "texts": self.texts, "tokens": self.tokens, "bytes": self.bytes}


@dataclass(frozen=True)
class Window:
    """How a text that exceeds the context is read: `context` tokens at a time, each window `stride` further.

    The tokens that are new in a window are scored there. A smaller stride lets each token see more of what comes before
    it, and takes longer. As in Hugging Face's guide to the perplexity of models with a fixed length.
    """

    context: int
    stride: int

    @classmethod
    def of(cls, context: int | None, stride: int | None, longest: int) -> "Window":
        """Fills in defaults: a context of 1,024, or what the model has if that is less, and a stride of half of it.

        Args:
            longest: the model's context.

        Raises:
            UserError: if the context exceeds the model's, or the stride exceeds the context.
        """
        context = context or min(DEFAULT_CONTEXT, longest)
        stride = stride or max(context // 2, 1)
        if context > longest:
            raise UserError(f"--text_context is {context:,}, but the model's context is {longest:,}")
        if stride > context:
            raise UserError(f"--text_stride is {stride:,}, expected at most the context of {context:,}")
        return cls(context, stride)

    def continuations(self, ids: Sequence[int], first: int) -> Iterator[Continuation]:
        """Cuts a text into windows. `first` stands before the text, so that its first token is predicted too."""
        tokens, scored = [first, *ids], 1
        while scored < len(tokens):
            end = min(scored + (self.context if scored == 1 else self.stride), len(tokens))
            start = max(end - self.context - 1, 0)
            yield Continuation(tokens[start:scored], tokens[scored:end])
            scored = end


def token_before_text(tokenizer: Tokenizer) -> int:
    """Returns the token that stands before a text: bos if the model's texts begin with it, else the one that ends the
    document before."""
    return tokenizer.before_text[0] if tokenizer.before_text else tokenizer.end_of_document_id


def files_of_texts(files: Iterable[Path]) -> dict[Path, list[tuple[str, str]]]:
    """Reads the texts of each file, with their places: a .txt file is one text, in other files each row's `text` is.

    Raises:
        UserError: names file and line, for a file that cannot be read, and for a row without text.
    """
    return {path: list(_texts(path)) for path in files}


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if file_kind(path).startswith("txt"):
        text = "".join(read_texts(path))
        if not text:
            raise UserError(f"{path}: the file has no text")
        yield str(path), text
        return
    yield from ((place, text) for place, row in read_rows(path) if (text := parse_text(row, place)))


def score_texts(model: LanguageModel, tokenizer: Tokenizer, texts: Iterable[tuple[str, str]], window: Window,
                count: Callable[[int], object]) -> TextScore:
    """Scores texts that come with their places; calls `count` with the tokens that were scored.

    Raises:
        UserError: if there is no text, or a text cannot be encoded.
    """
    first = token_before_text(tokenizer)
    total, number, tokens, size = 0.0, 0, 0, 0
    waiting: list[Continuation] = []

    def score() -> float:
        found = math.fsum(one.log_likelihood for _, one in likelihoods(model, waiting))
        count(sum(len(one.ids) for one in waiting))
        waiting.clear()
        return found

    for place, text in texts:
        ids = text_ids(tokenizer, text, place)
        number, tokens, size = number + 1, tokens + len(ids), size + len(text.encode())
        for one in window.continuations(ids, first):
            waiting.append(one)
            if len(waiting) == WINDOWS_AT_ONCE:
                total += score()
    if not tokens:
        raise UserError("there is no text to score")
    return TextScore(total + score(), number, tokens, size)
