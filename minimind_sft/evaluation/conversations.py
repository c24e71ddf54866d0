"""Evaluates a model on conversations: its losses on them, and its answers to their last questions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minimind_sft.data.conversation import Conversation, parse_conversation
from minimind_sft.data.example import Example, make_example
from minimind_sft.data.reading import read_rows
from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError, harmless
from minimind_sft.evaluation.likelihood import score_tokens
from minimind_sft.evaluation.questions import Question, Row, make_question, without_reasoning
from minimind_sft.evaluation.results import Candidate, Outcome, Store, data_facts
from minimind_sft.inference.generate import generate_greedily
from minimind_sft.inference.stopping import chat_stop_ids
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.paths import shown
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.evaluate import EvaluatedConversationsSettings
from minimind_sft.terminal import aligned

ROWS_AT_ONCE = 128
"""Rows whose losses are computed, and kept, together."""

PROBLEMS_SHOWN = 5


@dataclass
class Item:
    """A row under evaluation.

    source: the file it comes from.
    losses: sums over its supervised tokens (`_losses`); None if it could not be encoded.
    question: None without --answers.
    answer: the model's answer without reasoning; None if the question has a problem.
    problem: why it has no losses or no answer.
    """

    source: str
    row: Row
    losses: dict[str, Any] | None = None
    question: Question | None = None
    answer: str | None = None
    problem: str = ""


def evaluate_conversations(candidate: Candidate, settings: EvaluatedConversationsSettings, store: Store) -> Outcome:
    """Measures losses and scores answers, over all rows, by kind and by source."""
    files = find_files(settings.data_path, "--data_path")
    items = examine(candidate, settings, store)
    by_kind = {kind: summary(group) for kind, group in grouped(items, kind_of).items()}
    by_source = {source: summary(group) for source, group in grouped(items, source_of).items()}
    problems = [item.problem for item in items if item.problem]
    result = {"data": data_facts(files), "problems": problems, "all": summary(items), "by_kind": by_kind,
              "by_source": by_source}
    groups = [("all rows", summary(items))]
    for scores_of in (by_source, by_kind):
        groups += scores_of.items() if len(scores_of) > 1 else ()
    return Outcome(result, [*score_table(groups), *_named(problems)])


def examine(candidate: Candidate, settings: EvaluatedConversationsSettings, store: Store,
            name: str = "") -> list[Item]:
    """Returns all rows with losses and answers, those already in the store included.

    Args:
        name: tells the items of several candidates apart in the store.

    Raises:
        UserError: if a file cannot be read, or a row is not a conversation.
    """
    files = find_files(settings.data_path, "--data_path")
    items = [Item(shown(file), row) for file in files for row in _rows(file)]
    identity = {**candidate.identity, "data": [facts["sha256"] for facts in data_facts(files)]}
    measure_losses(candidate, items, store, identity, name)
    if settings.answers:
        answer_questions(candidate, items, settings, store, identity, name)
    return items


def _rows(file: Path) -> Iterator[Row]:
    for place, row in read_rows(file):
        yield Row(str(row.get("kind", "all")), parse_conversation(row, place))


def measure_losses(candidate: Candidate, items: Sequence[Item], store: Store, identity: dict, name: str = "") -> None:
    """Fills in the items' losses."""
    task = store.task(f"losses{name}", identity)
    left = [(str(number), item.row.conversation) for number, item in enumerate(items) if str(number) not in task.done]
    with tqdm(total=len(items), initial=len(items) - len(left), desc="losses", unit=" rows", leave=False,
              disable=None) as bar:
        for start in range(0, len(left), ROWS_AT_ONCE):
            numbers, conversations = zip(*left[start:start + ROWS_AT_ONCE], strict=True)
            task.add(dict(zip(numbers, _losses(candidate, conversations), strict=True)))
            bar.update(len(numbers))
    for number, item in enumerate(items):
        done = task.done[str(number)]
        item.losses, item.problem = (None, done["problem"]) if "problem" in done else (done, "")


def _losses(candidate: Candidate, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Returns for each conversation sums over its supervised tokens, or its problem.

    The sums are `loss` (nats), `tokens`, `right` (tokens that the model finds most likely), `bytes` (UTF-8, of the text
    of these tokens without the end of turn), and `cut` (supervised tokens beyond the model's context, left out).
    """
    template, model = candidate.loaded.template, candidate.loaded.model
    assert template is not None, "conversations need a template"
    found: list[dict[str, Any]] = []
    documents: list[Example] = []
    of_row: list[dict[str, Any]] = []
    for outcome in template.encode_batch(conversations):
        row: dict[str, Any] = {"loss": 0.0, "tokens": 0, "right": 0, "bytes": 0, "cut": 0}
        found.append({"problem": str(outcome)} if isinstance(outcome, UserError) else row)
        for sequence in [] if isinstance(outcome, UserError) else outcome:
            whole = make_example(sequence.input_ids, sequence.supervised)
            kept = Example(*(part[:model.config.context] for part in whole))
            learned = kept.labels[kept.labels != IGNORE_INDEX]
            row["cut"] += int((whole.labels != IGNORE_INDEX).sum()) - len(learned)
            text = template.tokenizer.decode(learned[learned != template.end_of_turn_id].tolist())
            row["bytes"] += len(text.encode())
            row["tokens"] += len(learned)
            documents.append(kept)
            of_row.append(row)
    for row, scores in zip(of_row, score_tokens(model, documents), strict=True):
        row["loss"] -= float(scores.log_probs_P.sum())
        row["right"] += int(scores.is_best_P.sum())
    return found


def answer_questions(candidate: Candidate, items: Sequence[Item], settings: EvaluatedConversationsSettings,
                     store: Store, identity: dict, name: str = "") -> None:
    """Fills in the items' questions and answers; each batch is kept as soon as it is answered."""
    loaded = candidate.loaded
    template, model = loaded.template, loaded.model
    assert template is not None, "conversations need a template"
    task = store.task(f"answers{name}", {**identity, "max_new_tokens": settings.max_new_tokens,
                                         "open_thinking": settings.open_thinking})
    for item in items:
        item.question = make_question(item.row, template, settings.open_thinking, model.config.context)
        item.problem = item.problem or item.question.problem
    asked = {str(number): item.question for number, item in enumerate(items)
             if item.question is not None and not item.question.problem}
    left = [(number, question) for number, question in asked.items() if number not in task.done]
    sampling = SamplingSettings(max_new_tokens=settings.max_new_tokens)
    stop_ids = chat_stop_ids(template, loaded.stop_ids)
    with tqdm(total=len(asked), initial=len(asked) - len(left), desc="answers", unit=" questions", leave=False,
              disable=None) as bar:
        for start in range(0, len(left), settings.batch_size):
            batch = left[start:start + settings.batch_size]
            said = generate_greedily(model, [question.prompt for _, question in batch], sampling, stop_ids)
            task.add({number: _answer_row(question, without_reasoning(template.tokenizer.decode(ids)))
                      for (number, question), ids in zip(batch, said, strict=True)})
            bar.update(len(batch))
    for number in asked:
        items[int(number)].answer = task.done[number]["answer"]


def _answer_row(question: Question, answer: str) -> dict[str, Any]:
    return {"kind": question.kind, "place": question.place, "question": question.messages[-1]["content"],
            "expected": question.expected, "answer": answer, "exact": answer == question.expected}


def kind_of(item: Item) -> str:
    return item.row.kind


def source_of(item: Item) -> str:
    return item.source


def grouped(items: Sequence[Item], group_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Groups the items; the groups are sorted by name."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    return dict(sorted(groups.items()))


def summary(items: Sequence[Item]) -> dict[str, Any]:
    """Returns the scores of a group of items.

    loss is the mean over all supervised tokens, in nats; bits_per_byte divides all their bits by the bytes of the text,
    so it compares models with different tokenizers. Scores of answers are shares of the questions asked.
    """
    scores: dict[str, Any] = {"rows": len(items)}
    sums = [item.losses for item in items if item.losses]
    tokens, loss, size = (sum(each[name] for each in sums) for name in ("tokens", "loss", "bytes"))
    if tokens:
        scores |= {"tokens": tokens, "loss": loss / tokens, "perplexity": math.exp(min(loss / tokens, 700.0)),
                   "bits_per_byte": loss / math.log(2) / size if size else None,
                   "token_accuracy": sum(each["right"] for each in sums) / tokens,
                   "tokens_cut": sum(each["cut"] for each in sums)}
    answered = [item for item in items if item.answer is not None]
    if answered:
        exact = sum(item.answer == item.question.expected for item in answered if item.question)
        scores |= {"questions": len(answered), "exact_match": exact / len(answered)}
    return scores


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "rows": ("rows", "{:,}".format), "loss": ("loss", "{:.4f}".format), "perplexity": ("perplexity", "{:,.3f}".format),
    "bits_per_byte": ("bits/byte", "{:.4f}".format), "token_accuracy": ("token acc.", "{:.1%}".format),
    "questions": ("questions", "{:,}".format), "exact_match": ("exact match", "{:.1%}".format)}
"""The columns of the table: the name of a score, the heading, and how to write it."""


def score_table(groups: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Lays out the scores of groups as a table; a column without values is left out."""
    used = {name: column for name, column in COLUMNS.items() if any(name in scores for _, scores in groups)}
    rows = [["", *(heading for heading, _ in used.values())]]
    for group, scores in groups:
        rows.append([harmless(group), *(write(scores[name]) if scores.get(name) is not None else "-"
                                        for name, (_, write) in used.items())])
    return aligned(rows, numbers=range(1, len(rows[0])))


def _named(problems: Sequence[str]) -> list[str]:
    """Names the first problems."""
    if not problems:
        return []
    more = len(problems) - PROBLEMS_SHOWN
    return [f"not scored: {len(problems)} row{'s' * (len(problems) > 1)}",
            *(f"  {harmless(problem)}" for problem in problems[:PROBLEMS_SHOWN]),
            *([f"  ... and {more} more (--out names all)"] if more > 0 else [])]
