"""Measures perplexity and bits per byte of plain text: whether a fine-tuned model still knows what it knew before."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from minimind_sft.data.conversation import parse_text
from minimind_sft.data.reading import file_kind, read_rows, read_texts
from minimind_sft.data.samples import text_ids
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.evaluation.continuations import Continuation, likelihoods
from minimind_sft.evaluation.losses import perplexity_of
from minimind_sft.evaluation.results import Candidate, Outcome, Store, Task, are_numbers, data_facts
from minimind_sft.inference.loading import Loaded
from minimind_sft.paths import shown
from minimind_sft.settings.evaluate import TextSettings
from minimind_sft.terminal import aligned, counted, progress_bar

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
        return perplexity_of(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits that a byte of the text (UTF-8) costs, which compares models with different tokenizers."""
        return -self.log_likelihood / math.log(2) / self.bytes

    @classmethod
    def sum_of(cls, scores: Iterable["TextScore"]) -> "TextScore":
        """Returns the score of all texts together."""
        return cls(*map(sum, zip(*map(astuple, scores), strict=True)))

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


def read_file(path: Path) -> list[tuple[str, str]]:
    """Reads the texts of a file, with their places: a .txt file is one text, in other files each row's `text` is.

    Raises:
        UserError: names file and line, if the file cannot be read or has no text, and for a row without `text`.
    """
    if file_kind(path).startswith("txt"):
        texts = [(str(path), "".join(read_texts(path)))]
    else:
        texts = [(place, parse_text(row, place)) for place, row in read_rows(path)]
    texts = [(place, text) for place, text in texts if text]
    if not texts:
        raise UserError(f"{path}: the file has no text")
    return texts


def evaluate_texts(candidate: Candidate, settings: TextSettings, store: Store, name: str = "") -> Outcome:
    """Measures how well a model predicts plain text, in all and by file.

    Args:
        name: tells the texts of several candidates apart in the store.

    Raises:
        UserError: if a file cannot be read or has no text, or the window does not suit the model.
    """
    files = find_files(settings.text_path, "--text_path")
    window = Window.of(settings.text_context, settings.text_stride, candidate.loaded.model.config.context)
    texts = [read_file(file) for file in files]
    data = data_facts(files)
    task = store.task(f"texts{name}", {**candidate.identity, "data": [facts["sha256"] for facts in data],
                                       **asdict(window)},
                      lambda values: are_numbers([values.get("log_likelihood")]))
    scores = {shown(file): score_texts(candidate.loaded, texts[number], window, task, str(number))
              for number, file in enumerate(files)}
    whole = TextScore.sum_of(scores.values())
    result = {"data": data, **asdict(window), "all": whole.as_json(),
              "by_source": {source: score.as_json() for source, score in scores.items()}}
    lines = _table({"all texts": whole, **(scores if len(scores) > 1 else {})})
    how = f"read in windows of {counted(window.context, 'token')} that move by {window.stride:,}"
    return Outcome(result, [*lines, how])


def score_texts(loaded: Loaded, texts: Iterable[tuple[str, str]], window: Window, task: Task, file: str) -> TextScore:
    """Scores the texts of a file, which come with their places.

    Parts that the task holds already are not computed again; `file` tells them apart from those of other files.

    Raises:
        UserError: names the place of a text that uses up the characters that marks need.
    """
    encoded, size = [], 0
    for place, text in texts:
        encoded.append(text_ids(loaded.tokenizer, text, place).tolist())
        size += len(text.encode())
    tokens, first = sum(map(len, encoded)), token_before_text(loaded.tokenizer)
    windows = (one for ids in encoded for one in window.continuations(ids, first))
    total = 0.0
    with progress_bar(label="texts", total=tokens, unit=" tokens") as bar:
        for part, batch in enumerate(iter(lambda: list(islice(windows, WINDOWS_AT_ONCE)), [])):
            item = f"{file}.{part}"
            if item not in task.done:
                found = math.fsum(one.log_likelihood for _, one in likelihoods(loaded.model, batch))
                task.add({item: {"log_likelihood": found, "tokens": sum(len(one.ids) for one in batch)}})
            total += task.done[item]["log_likelihood"]
            bar.update(sum(len(one.ids) for one in batch))
    return TextScore(total, len(encoded), tokens, size)


def _table(scores: Mapping[str, TextScore]) -> list[str]:
    rows = [[name, f"{one.texts:,}", f"{one.tokens:,}", f"{one.loss:.4f}", f"{one.perplexity:,.3f}",
             f"{one.bits_per_byte:.4f}"] for name, one in scores.items()]
    return aligned([["", "texts", "tokens", "loss", "perplexity", "bits/byte"], *rows], numbers=range(1, 6))
