"""Writes the rows of other formats as this project's own JSONL.

    python scripts/convert_data.py alpaca.json --out sft.jsonl --eval_rows 200 --eval_out sft_eval.jsonl
    python scripts/convert_data.py book.txt more.jsonl alpaca.json --to text --out text.jsonl

Reads Alpaca JSON (an array of {"instruction", "input", "output"}), JSONL rows {"text": ...} and plain text (a row per
line). `--to conversations` makes a conversation of each Alpaca row: the instruction, with the input below it, is the
question; rows without an instruction or an output are named and left out. `--to text` makes running text of any of
them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minimind_sft.data.conversation import parse_text
from minimind_sft.data.reading import parse_json, read_rows
from minimind_sft.errors import UserError, run_program

FIELDS = ("instruction", "input", "output")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="*.json (Alpaca), *.jsonl (text rows) or *.txt")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--to", choices=("conversations", "text"), default="conversations", help="what to make")
    parser.add_argument("--eval_rows", type=int, default=0, help="rows, drawn at random, to keep apart in --eval_out")
    parser.add_argument("--eval_out", type=Path, help="JSONL for the rows kept apart")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw (default: 42)")
    arguments = parser.parse_args()
    if bool(arguments.eval_rows) != bool(arguments.eval_out):
        raise UserError("--eval_rows and --eval_out go together")
    convert = conversation_rows if arguments.to == "conversations" else text_rows
    rows = [row for path in arguments.files for row in convert(path)]
    if arguments.eval_rows >= len(rows):
        raise UserError(f"--eval_rows is {arguments.eval_rows}, but there are only {len(rows)} rows")
    apart = set(np.random.default_rng(arguments.seed).permutation(len(rows))[:arguments.eval_rows].tolist())
    write(arguments.out, [row for index, row in enumerate(rows) if index not in apart])
    if apart:
        write(arguments.eval_out, [rows[index] for index in sorted(apart)])


def conversation_rows(path: Path) -> Iterator[dict]:
    for instruction, given, output in alpaca_rows(path):
        question = f"{instruction}\n{given}" if given else instruction
        yield {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": output}]}


def text_rows(path: Path) -> Iterator[dict]:
    if path.suffix == ".json":
        texts = ("\n".join(filter(None, row)) for row in alpaca_rows(path))
    elif path.suffix == ".jsonl":
        texts = (parse_text(row, place) for place, row in read_rows(path))
    else:
        texts = read(path).splitlines()
    yield from ({"text": text} for text in texts if text.strip())


def alpaca_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """(instruction, input, output) of each row that has a question and an answer, stripped.

    Raises:
        UserError: naming file, row and field.
    """
    rows = parse_json(read(path), str(path), "an array of Alpaca rows")
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected an array of Alpaca rows")
    for index, row in enumerate(rows):
        for field in FIELDS:
            if not isinstance(row, dict) or not isinstance(row.get(field, ""), str):
                raise UserError(f"{path}: row {index}: {field}: expected a string")
        instruction, given, output = (row.get(field, "").strip() for field in FIELDS)
        if instruction and output:
            yield instruction, given, output
        else:
            print(f"{path}: row {index}: left out, it has no {'output' if instruction else 'instruction'}")


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start}: not UTF-8") from error


def write(path: Path, rows: list[dict]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path}: {len(rows):,} rows")


if __name__ == "__main__":
    run_program(main)
