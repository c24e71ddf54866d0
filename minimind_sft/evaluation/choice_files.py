"""Reads multiple-choice questions in the layouts of MMLU, C-Eval and CMMLU.

    MMLU         CSV without a header: question, A, B, C, D, the answer's letter; or rows with `question`, `choices`
                 and `answer`, the number of the right one from 0, and often `subject`
    C-Eval       CSV: id, question, A, B, C, D, answer[, explanation]
    CMMLU        CSV: a number, Question, A, B, C, D, Answer

Any kind of file may hold rows with these fields. Rows without a subject have the one in the name of their file, or of
its folder, as in dev/anatomy_dev.csv and anatomy/test-00000-of-00001.parquet.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from minimind_sft.data.formats import field_names
from minimind_sft.data.lines import opened
from minimind_sft.data.reading import file_kind, parse_raw_row, read_rows
from minimind_sft.data.tables import DELIMITERS, table_rows
from minimind_sft.errors import UserError, describe
from minimind_sft.languages import LETTERS

MMLU_COLUMNS = ["question", "A", "B", "C", "D", "answer"]
SPLIT = re.compile(r"(?:dev|val|validation|valid|test|train|auxiliary_train)(?:-\d+-of-\d+)?")
"""Names of files that are called after a split, not a subject."""


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with several options, one of them right.

    benchmark: mmlu, ceval or cmmlu, whose words introduce the question.
    subject: as files name it, such as `high_school_physics`.
    answer: the index of the right option.
    """

    place: str
    benchmark: str
    subject: str
    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def letters(self) -> str:
        return ascii_uppercase[:len(self.options)]


def read_choices(files: Iterable[Path]) -> list[ChoiceQuestion]:
    """Reads the questions of all files.

    Raises:
        UserError: names file, line and field, for a row that is not a multiple-choice question.
    """
    return [question for path in files for question in _questions(path)]


def _questions(path: Path) -> Iterator[ChoiceQuestion]:
    benchmark = ""
    for place, row in _rows(path):
        try:
            benchmark = benchmark or _benchmark(row)
            options = _options(row)
            question, answer = _text(row, "Question" if benchmark == "cmmlu" else "question"), _answer(row, options)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        subject = row["subject"] if isinstance(row.get("subject"), str) else _subject(path)
        yield ChoiceQuestion(place, benchmark, subject, question, options, answer)


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields rows with their places; those of a table without a header get MMLU's names."""
    kind = file_kind(path).partition(".")[0]
    if kind in DELIMITERS:
        first = [cell.strip() for cell in _first_record(path, DELIMITERS[kind])]
        is_header = "question" in first or "Question" in first
        if len(first) == len(MMLU_COLUMNS) and first[-1] in tuple(ascii_uppercase[:4]) and not is_header:
            return ((raw.place, parse_raw_row(raw)) for raw in table_rows(path, kind, MMLU_COLUMNS))
    return read_rows(path)


def _first_record(path: Path, delimiter: str) -> list[str]:
    with opened(path) as file:
        lines = (line.decode("utf-8-sig", "replace") for line in file)
        try:
            return next(csv.reader(lines, delimiter=delimiter), [])
        except csv.Error:  # reading the rows says what is wrong, and where
            return []


def _benchmark(row: dict) -> str:
    """Tells the layout by the fields of a file's first row.

    Raises:
        UserError: if it is none of the layouts.
    """
    if "Question" in row and "A" in row:
        return "cmmlu"
    if "question" in row and ("A" in row or "choices" in row):
        is_chinese = isinstance(row["question"], str) and re.search(f"[{LETTERS['zh']}]", row["question"])
        return "ceval" if is_chinese or ("id" in row and "A" in row) else "mmlu"
    raise UserError("expected a multiple-choice question as in MMLU, C-Eval or CMMLU (question, A to D, answer; or "
                    f"question, choices, answer), found a row with {field_names(row)}")


def _options(row: dict) -> tuple[str, ...]:
    if "choices" in row:
        choices = row["choices"]
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
            raise UserError(f"choices: expected a list of 2 to {len(ascii_uppercase)} texts, found {describe(choices)}")
        for number, choice in enumerate(choices):
            if not isinstance(choice, str) or not choice.strip():
                raise UserError(f"choices[{number}]: expected a text, found {describe(choice)}")
        return tuple(choices)
    last = max(ascii_uppercase.index(letter) for letter in ascii_uppercase if letter in row)
    return tuple(_text(row, letter) for letter in ascii_uppercase[:max(last + 1, 2)])


def _text(row: dict, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{field}: expected a text, found {describe(value) if field in row else 'nothing'}")
    return value


def _answer(row: dict, options: tuple[str, ...]) -> int:
    """Returns the index of the right option, which a row gives as its letter, or beside `choices` as a number from 0.

    Raises:
        UserError: if it gives none.
    """
    field = "Answer" if "Answer" in row else "answer"
    value: Any = row.get(field)
    if value is None:
        raise UserError(f"{field}: expected the right option, found nothing (C-Eval's test set has no answers; its val "
                        "set has)")
    letters = ascii_uppercase[:len(options)]
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip() in letters:
        return letters.index(value.strip())
    if "choices" in row and type(value) is int and 0 <= value < len(options):
        return value
    number = f" or a number from 0 to {len(options) - 1}" if "choices" in row else ""
    raise UserError(f"{field}: expected a letter from A to {letters[-1]}{number}, found {describe(value)}")


def _subject(path: Path) -> str:
    """Returns the subject that the name of a file says, or that of its folder if the file is named after a split."""
    name = path.name[:-len(file_kind(path)) - 1]
    if SPLIT.fullmatch(name):
        return path.absolute().parent.name
    return re.sub(rf"_{SPLIT.pattern}$", "", name)
