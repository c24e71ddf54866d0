"""Converts data of any supported format to this project's JSONL, and drops the rows you do not want.

    python scripts/convert_data.py alpaca.json sharegpt.jsonl.gz --out sft.jsonl --eval_rows 200 --eval_out eval.jsonl
    python scripts/convert_data.py "raw/*.parquet" --out sft.jsonl --drop_duplicates --language zh:0.5 --min_answer 2
    python scripts/convert_data.py book.txt alpaca.json --to text --out text.jsonl
    python scripts/convert_data.py dpo.jsonl --preference chosen --out sft.jsonl
    python scripts/convert_data.py hh-rlhf.jsonl.gz --dialogue_field chosen --out sft.jsonl

Reads everything that training reads (docs/data.md). --to conversations writes {"conversations": [...]}, and for
running text {"text": ...}; --to text turns conversations into running text too, without reasoning, calls and tools.
--preference chosen keeps the better of two answers. --dialogue_field reads a text in which lines begin with Human: and
Assistant:. Unusable rows are named and left out. --overwrite replaces an existing file and keeps it as FILE.previous.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.conversation import canonical_row, parse_row
from minimind_sft.data.dialogues import dialogue_row
from minimind_sft.data.filters import (
    Row,
    language_share,
    longest_sequence,
    not_among,
    not_seen_before,
    row_text,
    shortest_answer,
)
from minimind_sft.data.preferences import chosen_row
from minimind_sft.data.reading import RawRow, parse_raw_row, read_raw_rows
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError, run_program
from minimind_sft.languages import LETTERS
from minimind_sft.set_aside import check_replaceable, set_aside_file
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import ConvertSettings, FilterSettings, ReadingSettings, WritingSettings
from minimind_sft.settings.spec import flags_of
from minimind_sft.terminal import counted, progress_bar, say
from minimind_sft.writing import check_writable, create, write_together

Filters = list[tuple[str, Callable[[Row], bool]]]
NAMED = 10


def main() -> None:
    settings = parse_flags(ConvertSettings, description=__doc__)
    reading, writing = settings.reading, settings.writing
    check_outputs(writing)
    files, filters = find_files(reading.files), make_filters(settings.filters, reading)
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as kept:
        rows = progress_bar(read_good_rows(files, reading), label="reading", unit=" rows", delay=2)
        dropped, written = Counter(), 0
        for row in rows:
            reason = why_not(row, filters)
            if reason:
                dropped[reason] += 1
                continue
            keep(kept, json.dumps(as_json(row, writing.to), ensure_ascii=False) + "\n")
            written += 1
        keep(kept, "", flush=True)
        report(dropped)
        write_parts(kept, written, writing)


def check_outputs(settings: WritingSettings) -> None:
    """Checks the files to write before anything is read.

    Raises:
        UserError: if a file cannot be written, or exists and `--overwrite` is not set.
    """
    for flag in flags_of(settings):
        if flag.setting.endings and flag.value:
            path = Path(flag.value)
            check_writable(path.parent, str(flag))
            check_replaceable([path], settings.overwrite, f"choose another {flag}")


def make_filters(settings: FilterSettings, reading: ReadingSettings) -> Filters:
    """Returns the conditions that a row must meet, each with the reason to report for rows that do not.

    Duplicates come last: a row that is dropped for another reason must not make a later one a duplicate.
    """
    chosen: Filters = [("no text", lambda row: not isinstance(row, str) or bool(row.strip()))]
    if settings.min_answer:
        chosen.append((f"an answer of fewer than {counted(settings.min_answer, 'character')}",
                       lambda row: (length := shortest_answer(row)) is None or length >= settings.min_answer))
    if settings.language:
        language, share = parse_language(settings.language)
        chosen.append((f"less than {share:.0%} {language}",
                       lambda row: language_share(row_text(row), language) >= share))
    if settings.max_tokens:
        encoder = SFTEncoder(make_template(load_tokenizer(settings.tokenizer_path)), settings.max_tokens)
        chosen.append((f"more than {counted(settings.max_tokens, 'token')}",
                       lambda row: longest_sequence(row, encoder) <= settings.max_tokens))
    if settings.drop_in:
        chosen.append(("also in --drop_in", not_among(read_good_rows(find_files(settings.drop_in), reading))))
    if settings.drop_duplicates:
        chosen.append(("the same as an earlier row", not_seen_before()))
    return chosen


def why_not(row: Row, filters: Filters) -> str | None:
    """Returns the reason to drop a row; None if it passes all filters."""
    try:
        return next((reason for reason, keeps in filters if not keeps(row)), None)
    except UserError:
        return "refused by the chat template"


def parse_language(text: str) -> tuple[str, float]:
    """Splits `zh:0.5` into a language and a share.

    Raises:
        UserError: for another language, or a share outside 0 to 1.
    """
    language, _, share = text.partition(":")
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if language not in LETTERS or not 0 <= number <= 1:
        raise UserError(f"--language {text}: expected one of {', '.join(LETTERS)} with a share from 0 to 1, zh:0.5")
    return language, number


def read_good_rows(files: Sequence[Path], settings: ReadingSettings) -> Iterator[Row]:
    """Yields the usable rows, and names the others."""
    bad = 0
    for raw in chain.from_iterable(map(read_raw_rows, files)):
        try:
            row = read_row(raw, settings)
        except UserError as error:
            bad += 1
            if bad <= NAMED:
                say(f"left out    {error}")
            continue
        yield row
    if bad > NAMED:
        say(f"left out    ... {bad:,} rows in all (scripts/inspect_data.py lists them)")


def read_row(raw: RawRow, settings: ReadingSettings) -> Row:
    row = {name: value for name, value in parse_raw_row(raw).items() if name not in settings.drop_fields}
    try:
        if settings.dialogue_field:
            row = dialogue_row(row, settings.dialogue_field)
        if settings.preference:
            row = chosen_row(row)
    except UserError as error:
        raise UserError(f"{raw.place}: {error}") from error
    return parse_row(row, raw.place)


def as_json(row: Row, form: str) -> dict:
    return {"text": row_text(row)} if isinstance(row, str) or form == "text" else canonical_row(row)


def keep(kept: IO[str], line: str, flush: bool = False) -> None:
    """Adds a line to the temporary file.

    Raises:
        UserError: if the temporary folder is full.
    """
    try:
        kept.write(line)
        if flush:
            kept.flush()
    except OSError as error:
        raise UserError(f"{tempfile.gettempdir()}: the rows cannot be kept there ({error.strerror}); the variable "
                        "TMPDIR names another folder") from error


def report(dropped: Counter) -> None:
    width = max((len(f"{count:,}") for count in dropped.values()), default=0)
    for reason, count in dropped.items():
        say(f"dropped     {count:>{width},} row{'s' * (count != 1)}: {reason}")


def write_parts(kept: IO[str], count: int, settings: WritingSettings) -> None:
    """Writes the rows to --out, except those drawn for --eval_out."""
    if count == 0:
        raise UserError("no row is left to write")
    if settings.eval_rows >= count:
        raise UserError(f"--eval_rows is {settings.eval_rows}, expected fewer than the {counted(count, 'row')} to "
                        "write")
    apart = set(np.random.default_rng(settings.seed).permutation(count)[:settings.eval_rows].tolist())

    def write(temporary: Path, is_apart: bool) -> None:
        kept.seek(0)
        with create(temporary) as file:
            file.writelines(line.encode() for number, line in enumerate(kept) if (number in apart) == is_apart)

    def make_room() -> None:
        """Checks again, since another program may have written there while this one read."""
        for path in parts:
            check_replaceable([path], settings.overwrite, "choose another name")
        for path in parts:
            if previous := set_aside_file(path):
                say(f"overwrite   {path} moved to {previous}")

    parts = {Path(settings.out): partial(write, is_apart=False)}
    if settings.eval_out:
        parts[Path(settings.eval_out)] = partial(write, is_apart=True)
    write_together(parts, before_replacing=make_room)
    for path, rows in zip(parts, (count - len(apart), len(apart)), strict=False):
        say(f"{path}: {counted(rows, 'row')}")


if __name__ == "__main__":
    run_program(main)
