"""Scores a model by exact match: it answers each row's last question, and the row's answer is compared."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.lines import MAX_ROW_BYTES
from minimind_sft.errors import UserError
from minimind_sft.evaluation.questions import Question, without_reasoning
from minimind_sft.files import open_regular, resolved
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_greedily
from minimind_sft.inference.stopping import chat_stop_ids
from minimind_sft.strict_json import parse_json
from minimind_sft.terminal import columns, counted, in_one_line, progress_bar
from minimind_sft.writing import check_writable, write_text_atomically

PROBLEMS_NAMED = 5
WRONG_SHOWN = 3
OUTPUT_FIELDS = ("kind", "place", "expected", "answer", "exact")
"""The fields of every line of `--score_out`."""


@dataclass(frozen=True)
class Scored:
    """A question and the model's answer without reasoning, or None if the question has a problem."""

    question: Question
    answer: str | None

    @property
    def exact(self) -> bool | None:
        return None if self.answer is None else self.answer == self.question.expected


def score(model: LanguageModel, template: ChatTemplate, questions: Sequence[Question], settings: SamplingSettings,
          batch_size: int, stop_ids: Collection[int] = ()) -> list[Scored]:
    """Answers the questions greedily, `batch_size` at a time; questions with a problem get no answer.

    Args:
        stop_ids: tokens that end an answer, besides the template's end of turn and the tokenizer's end of document.
    """
    stop_ids = chat_stop_ids(template, stop_ids)
    asked = [question for question in questions if not question.problem]
    said: list[str] = []
    with progress_bar(label="answering", total=len(asked), unit=" questions") as bar:
        for start in range(0, len(asked), batch_size):
            batch = asked[start:start + batch_size]
            said += answer(model, template, batch, settings, stop_ids)
            bar.update(len(batch))
    answers = iter(said)
    return [Scored(question, None if question.problem else next(answers)) for question in questions]


def answer(model: LanguageModel, template: ChatTemplate, questions: Sequence[Question], settings: SamplingSettings,
           stop_ids: Collection[int]) -> list[str]:
    """Answers questions without problems greedily, all at once; returns the answers without reasoning.

    An answer does not depend on the other questions (`generate_greedily`).
    """
    answers = generate_greedily(model, [question.prompt for question in questions], settings, stop_ids)
    return [without_reasoning(template.tokenizer.decode(ids)) for ids in answers]


def report(results: Sequence[Scored], width: int) -> Iterator[str]:
    """Yields the report's lines for a terminal of `width` columns.

    They are a table of kinds, rows that could not be compared, examples of wrong answers, and the total.

    Raises:
        UserError: if no row can be compared.
    """
    compared = [result for result in results if result.exact is not None]
    problems = [result.question.problem for result in results if result.question.problem]
    if not compared:
        raise UserError(f"--score: no row can be compared, starting with {problems[0]}")
    asked = Counter(result.question.kind for result in compared)
    right = Counter(result.question.kind for result in compared if result.exact)
    longest = max(map(len, [*map(in_one_line, asked), "kind"]))
    yield f"{'kind':<{longest}}  questions  exact match"
    for kind in sorted(asked):
        yield f"{in_one_line(kind):<{longest}}  {asked[kind]:>9}  {right[kind] / asked[kind]:>11.1%}"
    if calls := sum(result.question.has_call for result in compared):
        yield f"{calls} of them expect a tool call, compared as the chat template writes it"
    yield from problem_lines("not compared", problems, "row", "--score_out")
    yield from wrong_answers(compared, width)
    yield f"exact match: {sum(right.values()) / len(compared):.1%} ({counted(len(compared), 'question')})"


def problem_lines(heading: str, problems: Sequence[str], unit: str, flag: str) -> Iterator[str]:
    """Yields lines that count problems and name the first; no line if there are none.

    Args:
        unit: what has a problem, in the singular.
        flag: writes the file that names all problems.
    """
    if problems:
        yield f"{heading}: {counted(len(problems), unit)}"
        yield from (f"  {in_one_line(problem)}" for problem in problems[:PROBLEMS_NAMED])
    if len(problems) > PROBLEMS_NAMED:
        yield f"  ... and {len(problems) - PROBLEMS_NAMED} more ({flag} names all)"


def wrong_answers(results: Sequence[Scored], width: int) -> Iterator[str]:
    """Yields lines with the first wrong answers; no line if there are none."""
    wrong = [result for result in results if result.exact is False]
    if wrong:
        yield f"wrong answers, {min(WRONG_SHOWN, len(wrong))} of {len(wrong)}:"
    for result in wrong[:WRONG_SHOWN]:
        yield f"  {in_one_line(result.question.place)}"
        texts = {"question": result.question.messages[-1]["content"], "expected": result.question.expected,
                 "answer": result.answer}
        yield from (shortened(f"    {name:<8}  {text}", width) for name, text in texts.items())


def shortened(text: str, width: int) -> str:
    """Returns `text` on one line of at most `width` columns, cut with "..."."""
    text = in_one_line(text)
    if columns(text) <= width:
        return text
    kept = bisect_right(range(len(text)), width - len("..."), key=lambda length: columns(text[:length]))
    return text[:kept - 1] + "..."


def output_rows(results: Iterable[Scored]) -> Iterator[dict]:
    """Yields a JSON object for each row of the data, in order."""
    for result in results:
        question = result.question
        row: dict[str, Any] = {"kind": question.kind, "place": question.place, "messages": list(question.messages)}
        if question.tools:
            row["tools"] = question.tools
        row |= {"expected": question.expected or None, "answer": result.answer, "exact": result.exact}
        yield row | ({"problem": question.problem} if question.problem else {})


def check_output(path: Path, files: Iterable[Path]) -> None:
    """Checks the file for results before any question is answered.

    Raises:
        UserError: if results cannot be written to `path`, or would replace a file with other contents.
    """
    if resolved(path) in {resolved(file) for file in files}:
        raise UserError(f"--score_out {path}: this is the file with the questions")
    with suppress(OSError):  # of a folder that may not be entered: the next check says so
        if path.exists() and not _holds_results(path):
            raise UserError(f"--score_out {path}: the file exists and holds something other than results of --score; "
                            "choose another name")
    check_writable(path.parent, "--score_out")


def _holds_results(path: Path) -> bool:
    """Tells whether a file is empty or begins with a row of results."""
    try:
        with open_regular(path) as file:
            first = file.readline(MAX_ROW_BYTES)
        return not first or set(OUTPUT_FIELDS) <= parse_json(first.decode(), str(path)).keys()
    except (OSError, ValueError, AttributeError):
        return False


def write_output(results: Sequence[Scored], path: Path) -> None:
    """Writes the results, a JSON object per row.

    Raises:
        UserError: if the file cannot be written.
    """
    write_text_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in output_rows(results)))
