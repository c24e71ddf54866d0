"""Evaluates a model on conversations: its losses on them, and its answers to their last questions."""

import math
import shutil
from collections.abc import Sequence
from typing import Any

from minimind_sft.data.conversation import Conversation
from minimind_sft.data.example import Example, make_example
from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError
from minimind_sft.evaluation.answering import Scored, answer, problem_lines, wrong_answers
from minimind_sft.evaluation.items import Item, grouped, kind_of, source_of
from minimind_sft.evaluation.likelihood import score_tokens
from minimind_sft.evaluation.questions import Question, make_question, read_scored_rows
from minimind_sft.evaluation.results import Candidate, Outcome, Store, are_numbers, data_facts
from minimind_sft.evaluation.scores import missing_scores, score_answers, score_tables, summary
from minimind_sft.inference.stopping import chat_stop_ids
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.paths import shown
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.evaluate import EvaluatedConversationsSettings
from minimind_sft.terminal import counted, progress_bar

ROWS_AT_ONCE = 128
"""Rows whose losses are computed, and kept, together."""


def evaluate_conversations(candidate: Candidate, settings: EvaluatedConversationsSettings, store: Store) -> Outcome:
    """Measures losses and scores answers, over all rows, by source and by kind.

    Raises:
        UserError: if a file cannot be read, a row is not a conversation, or nothing could be measured on any row.
    """
    items = examine(candidate, settings, store)
    missing = missing_scores(items)
    score_answers(items, missing)
    everything = summary(items, missing)
    problems = [item.problem for item in items if item.problem]
    if not {"tokens", "questions"} & everything.keys():
        reason = (f"starting with {problems[0]}" if problems else
                  f"as the model's context of {candidate.loaded.model.config.context:,} tokens ends before any answer")
        raise UserError(f"--data_path: every row is left out, {reason}")
    by_source, by_kind = ({name: summary(group, missing) for name, group in grouped(items, group_of).items()}
                          for group_of in (source_of, kind_of))
    result = {"data": data_facts(find_files(settings.data_path)), "all": everything, "by_kind": by_kind,
              "by_source": by_source, "problems": problems, "not_scored": missing}
    groups = [("all rows", everything)]
    for scores_of in (by_source, by_kind):
        groups += scores_of.items() if len(scores_of) > 1 else ()
    answers = [Scored(item.question, item.answer) for item in items if item.question is not None]
    further = [*wrong_answers(answers, shutil.get_terminal_size().columns), *_remarks(everything, missing, problems)]
    return Outcome(result, [*score_tables(groups), *([""] if further else []), *further], items)


def examine(candidate: Candidate, settings: EvaluatedConversationsSettings, store: Store) -> list[Item]:
    """Returns all rows with losses and answers, those already in the store included.

    Raises:
        UserError: if a file cannot be read, or a row is not a conversation.
    """
    files = find_files(settings.data_path, "--data_path")
    items = [Item(shown(file), row) for file in files for row in read_scored_rows([file])]
    identity = {**candidate.identity, "data": [facts["sha256"] for facts in data_facts(files)]}
    measure_losses(candidate, items, store, identity)
    if settings.answers:
        answer_questions(candidate, items, settings, store, identity)
    return items


def measure_losses(candidate: Candidate, items: Sequence[Item], store: Store, identity: dict) -> None:
    """Fills in the items' losses."""
    task = store.task("losses", identity, _are_losses)
    left = [(str(number), item.row.conversation) for number, item in enumerate(items) if str(number) not in task.done]
    with progress_bar(label="losses", total=len(items), initial=len(items) - len(left), unit=" rows") as bar:
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
    return [row if math.isfinite(row.get("loss", 0.0)) else {"problem": f"{conversation.place}: the loss is not finite"}
            for row, conversation in zip(found, conversations, strict=True)]


def _are_losses(values: dict[str, Any]) -> bool:
    counts = [values.get(name) for name in ("tokens", "right", "bytes", "cut")]
    return isinstance(values.get("problem"), str) or (
        are_numbers([values.get("loss"), *counts]) and all(type(count) is int and count >= 0 for count in counts)
        and values["right"] <= values["tokens"])


def answer_questions(candidate: Candidate, items: Sequence[Item], settings: EvaluatedConversationsSettings,
                     store: Store, identity: dict) -> None:
    """Fills in the items' questions and answers; each batch is kept as soon as it is answered."""
    loaded = candidate.loaded
    template, model = loaded.template, loaded.model
    assert template is not None, "conversations need a template"
    task = store.task("answers", {**identity, "max_new_tokens": settings.max_new_tokens,
                                  "open_thinking": settings.open_thinking},
                      lambda values: isinstance(values.get("answer"), str))
    for item in items:
        item.question = make_question(item.row, template, settings.open_thinking, model.config.context)
        item.problem = item.problem or item.question.problem
    asked = {str(number): item.question for number, item in enumerate(items)
             if item.question is not None and not item.question.problem}
    left = [(number, question) for number, question in asked.items() if number not in task.done]
    sampling = SamplingSettings(max_new_tokens=settings.max_new_tokens)
    stop_ids = chat_stop_ids(template, loaded.stop_ids)
    with progress_bar(label="answers", total=len(asked), initial=len(asked) - len(left), unit=" questions") as bar:
        for start in range(0, len(left), settings.batch_size):
            batch = left[start:start + settings.batch_size]
            answers = answer(model, template, [question for _, question in batch], sampling, stop_ids)
            task.add({number: _answer_row(question, said)
                      for (number, question), said in zip(batch, answers, strict=True)})
            bar.update(len(batch))
    for number in asked:
        items[int(number)].answer = task.done[number]["answer"]


def _answer_row(question: Question, answer: str) -> dict[str, Any]:
    return {"kind": question.kind, "place": question.place, "question": question.messages[-1]["content"],
            "expected": question.expected, "answer": answer, "exact": answer == question.expected}


def _remarks(everything: dict[str, Any], missing: dict[str, str], problems: Sequence[str]) -> list[str]:
    """Says what the tables leave out."""
    lines = []
    for package in dict.fromkeys(missing.values()):
        names = " and ".join(name for name, needed in missing.items() if needed == package)
        lines.append(f"not scored: {names}; pip install {package}")
    if cut := everything.get("tokens_cut"):
        lines.append(f"cut: {counted(cut, 'supervised token')} beyond the model's context")
    return [*lines, *problem_lines("left out", problems, "row", "--out")]
