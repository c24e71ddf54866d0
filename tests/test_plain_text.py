"""Perplexity and bits per byte of plain text."""

import gzip
import math
from pathlib import Path

import pytest
import torch
from chats import TOKENIZER, tiny_model
from programs import write_rows

from minimind_sft.errors import UserError
from minimind_sft.evaluation import plain_text
from minimind_sft.evaluation.continuations import likelihoods
from minimind_sft.evaluation.plain_text import TextScore, Window, read_file, score_texts, token_before_text
from minimind_sft.evaluation.results import Store, Task
from minimind_sft.inference.loading import Loaded

TEXTS = [("a.jsonl:1", "Water boils at 100 degrees. <|im_end|> is text here."), ("a.jsonl:2", "水在一百度时沸腾。" * 9)]


def cut(length: int, context: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """Returns (read before, scored) for the windows of a text 1, 2, ... with 0 before it."""
    windows = Window(context, stride).continuations(range(1, length + 1), 0)
    return [(list(one.context), list(one.ids)) for one in windows]


@pytest.mark.parametrize("length, context, stride, windows", [
    (0, 4, 2, []),
    (1, 4, 2, [([0], [1])]),
    (4, 4, 4, [([0], [1, 2, 3, 4])]),
    # as in the docstring of lm-evaluation-harness's loglikelihood_rolling: the last window reads all it can
    (10, 4, 4, [([0], [1, 2, 3, 4]), ([4], [5, 6, 7, 8]), ([6, 7, 8], [9, 10])]),
    (7, 4, 2, [([0], [1, 2, 3, 4]), ([2, 3, 4], [5, 6]), ([3, 4, 5, 6], [7])]),
    (3, 1, 1, [([0], [1]), ([1], [2]), ([2], [3])]),
])
def test_windows_predict_every_token_once(length, context, stride, windows):
    assert cut(length, context, stride) == windows


def test_a_window_has_defaults_and_limits():
    assert Window.of(None, None, longest=32768) == Window(1024, 512)
    assert Window.of(None, None, longest=512) == Window(512, 256)
    assert Window.of(64, None, longest=512) == Window(64, 32)
    assert Window.of(1, None, longest=512) == Window(1, 1)
    with pytest.raises(UserError, match=r"--text_context is 1,024, but the model's context is 512"):
        Window.of(1024, None, longest=512)
    with pytest.raises(UserError, match=r"--text_stride is 65, expected at most the context of 64"):
        Window.of(64, 65, longest=512)


def score(model, texts, window: Window, task: Task | None = None) -> TextScore:
    loaded = Loaded(Path("m.pth"), model, TOKENIZER, None, frozenset(), (), is_minimind=False, trained_length=None)
    return score_texts(loaded, texts, window, task or Store(None).task("texts", {}), "0")


@torch.no_grad()
def test_the_score_is_the_cross_entropy_of_whole_texts():
    model = tiny_model().double()
    found = score(model, TEXTS, Window(256, 128))
    nats, tokens = 0.0, 0
    for _, text in TEXTS:
        ids = TOKENIZER.encode_ordinary(text)
        logits = model.document_logits(torch.tensor([token_before_text(TOKENIZER), *ids[:-1]]), (0, len(ids)))
        nats += torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
        tokens += len(ids)
    assert (found.texts, found.tokens) == (2, tokens)
    assert found.bytes == sum(len(text.encode()) for _, text in TEXTS) == 295
    assert found.loss == pytest.approx(nats / tokens, abs=1e-12)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 295)


def test_a_short_stride_gives_more_context_and_the_same_tokens():
    model = tiny_model()
    scores = [score(model, TEXTS, Window(16, stride)) for stride in (16, 8, 1)]
    assert len({one.tokens for one in scores}) == 1
    assert len({one.log_likelihood for one in scores}) == 3


def test_parts_that_are_finished_are_not_computed_again(monkeypatch):
    monkeypatch.setattr(plain_text, "WINDOWS_AT_ONCE", 2)
    model, task = tiny_model(), Store(None).task("texts", {})
    whole = score(model, TEXTS, Window(16, 8), task)
    assert sum(part["tokens"] for part in task.done.values()) == whole.tokens and len(task.done) > 2
    del task.done["0.1"]
    computed = []
    monkeypatch.setattr(plain_text, "likelihoods", lambda *each: computed.append(1) or likelihoods(*each))
    assert score(model, TEXTS, Window(16, 8), task) == whole and computed == [1]


def test_a_uniform_guess_costs_what_it_must():
    assert TextScore(-6 * math.log(4), texts=1, tokens=6, bytes=3).as_json() == pytest.approx(
        {"loss": math.log(4), "perplexity": 4.0, "bits_per_byte": 4.0, "texts": 1, "tokens": 6, "bytes": 3})


def test_a_text_file_is_one_text_and_other_rows_are_one_each(tmp_path):
    book = tmp_path / "book.txt.gz"
    book.write_bytes(gzip.compress(b"One line.\n\nAnother.\n"))
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": ""}, {"text": "b\nc"}])
    assert read_file(book) == [(str(book), "One line.\n\nAnother.\n")]
    assert read_file(rows) == [(f"{rows}:1", "a"), (f"{rows}:3", "b\nc")]


def test_what_has_no_text_is_refused(tmp_path):
    empty = write_rows(tmp_path / "empty.jsonl", [{"text": ""}])
    with pytest.raises(UserError, match=r"empty\.jsonl: the file has no text"):
        read_file(empty)
    chat = write_rows(tmp_path / "chat.jsonl", [{"conversations": []}])
    with pytest.raises(UserError, match=r"chat\.jsonl:1: text: expected a string, found a row with conversations"):
        read_file(chat)
