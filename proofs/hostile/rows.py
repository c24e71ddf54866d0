"""Every field of every layout of a row with every odd value, in every kind of file."""

import base64
import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from hostile.odd_values import fields_of, with_value
from hostile.tries import Outcome, Try

KIND = "fields of rows, in all layouts and files"

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
LAYOUTS: dict[str, dict] = {
    "conversations": {"conversations": [USER, ANSWER], "system": "s", "kind": "k", "id": 1},
    "ShareGPT": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "messages": {"messages": [{"role": "system", "content": "s"}, USER,
                              {**ANSWER, "reasoning_content": "r", "train": False}, USER, ANSWER]},
    "calls": {"messages": [USER, {**ANSWER, "tool_calls": [CALL]},
                           {"role": "tool", "content": "1", "name": "f", "tool_call_id": "1"}, ANSWER],
              "tools": [TOOL]},
    "function_call": {"conversations": [{"from": "human", "value": "q"},
                                        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                                        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
                      "functions": [{"name": "f"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
    "pairs": {"conversation": [{"system": "s", "input": "q", "output": "a"}]},
    "prompt": {"prompt": [USER], "completion": [ANSWER]},
    "prompt as text": {"prompt": "q", "completion": "a", "label": True},
    "Alpaca": {"instruction": "q", "input": "i", "output": "a", "history": [["q", "a"]]},
    "question": {"question": "q", "answer": "a", "loss": 1},
    "JSON in a string": {"messages": json.dumps([USER, ANSWER]), "tools": json.dumps([TOOL])},
    "text": {"text": "words", "kind": "k"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
}
NEVER = {
    "NaN": "NaN", "infinity": "-Infinity", "1e400": "1e400", "5,000 digits": "9" * 5000, "half a pair": r'"\ud800"',
    "half a pair as a name": r'{"\udfff": 1}', "a name twice": '{"a": 1, "a": 2}',
    "deep lists": "[" * 5000 + "]" * 5000,
    "deep objects": '{"a":' * 3000 + "1" + "}" * 3000, "control characters": '"\x00\x01"', "single quotes": "'a'",
    "a comment": "/* a */ 1", "an octal number": "007", "no value": "",
}
"""JSON that no row may hold anywhere, as it stands in the file."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e-320, 10**300, "", " ", "\x00", "\x1b[2J\u202e", "\U0010ffff\ufffe", "\ue000",
    "\U000F0002<|im_end|>", "<|im_start|>system\n", "<think></think>", "[", "[]", "{}", "null", '[{"role": "user"}]',
    '{"name": 1}', "true", "9" * 5000, "[" * 200 + "]" * 200, "a" * 100_000, [], {}, [None], [[]], [[], {}], {"": ""},
    {"role": "assistant"}, {"type": "text"}, [{"type": "image"}], [{"type": "text", "text": 1}], ["a", "b"], [1, 2],
    {"function": 1}, {"function": {"name": None}}, [{"name": "f", "arguments": "["}], {"__class__": "a"}, "system",
    "function_call", "tool", "developer", "ASSISTANT")
TEXTS = frozenset(["content", "value", "text", "role", "from", "instruction", "output", "question", "answer", "input",
                   "system", "reasoning_content", "chosen"])
"""Fields that hold text: numbers, truth values and objects must be refused there."""
TINY = ("--from_weight", "none", "--hidden_size", "16", "--num_hidden_layers", "1", "--max_steps", "1", "--max_seq_len",
        "64", "--device", "cpu", "--dtype", "float32", "--eval_samples", "0", "--eval_share", "0", "--batch_size", "2")
DAMAGE = (b"", b"\x00", b"\xff", b'"', b"\\", b"{", b"]", b"\n", b",")
PLACEHOLDER = "PLACEHOLDER-7f3a"
"""Stands for a value that json.dumps would not write."""


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields a row as it should be, fields with values that no row may have or odd ones, and random rows and files."""
    places = [(name, path) for name, row in LAYOUTS.items() for path in fields_of(row)]
    never = [(place, what) for place, what in product(places, NEVER)
             if what != "no value" or isinstance(place[1][-1], str)]  # a list may have one value less
    odd = list(product(places, ODD))
    random.shuffle(never)
    random.shuffle(odd)
    name, row = next(iter(LAYOUTS.items()))
    yield _try(folder, 1, f"{name} as it should be", f"{json.dumps(row)}\n".encode(), ".jsonl", "accepted")
    for number in range(count):
        if number % 4 == 0 and never:
            (name, path), what = never.pop()
            text = json.dumps(with_value(LAYOUTS[name], path, PLACEHOLDER)).replace(f'"{PLACEHOLDER}"', NEVER[what])
            yield _try(folder, number, f"{name}: {_shown(path)}: {what}", f"{text}\n".encode(), ".jsonl", "refused")
        elif number % 2 and odd:
            (name, path), value = odd.pop()
            row = with_value(LAYOUTS[name], path, value)
            content = json.dumps(row, indent=random.choice([None, 1])) + "\n"
            yield _try(folder, number, f"{name}: {_shown(path)}: {str(value)[:30]!a}", content.encode(), ".jsonl",
                       "refused" if _is_wrong(path, value) else "either")
        else:
            rows = [_random_row(random) for _ in range(random.choice([1, 3]))]
            suffix, pack = random.choice(list(FILES.items()))
            yield _try(folder, number, f"random rows in {suffix}", pack(rows, random), suffix, "either")


def _try(folder: Path, number: int, name: str, content: bytes, suffix: str, expected: str) -> Try:
    """Writes the file of a try; every third is converted instead of trained on."""
    out = folder / "out"
    shutil.rmtree(folder / "out", ignore_errors=True)
    for old in folder.glob("data.*"):
        old.unlink()
    path = folder / f"data{suffix}"
    path.write_bytes(content)
    if number % 3 and expected != "refused":
        flags = ("--to", "text") if number % 2 else ()
        return Try(name, ["scripts/convert_data.py", str(path), "--out", str(out / "rows.jsonl"), *flags], expected,
                   check=rows_can_be_read)
    return Try(name, ["trainer/train_full_sft.py", "--data_path", str(path), *TINY, "--save_dir", str(out)], expected,
               check=weights_are_there)


def weights_are_there(outcome: Outcome) -> str | None:
    """Looks for the weights of a run that has ended well."""
    return None if list((outcome.folder / "out").glob("*.pth")) else "there are no weights"


def rows_can_be_read(outcome: Outcome) -> str | None:
    """Checks that every converted row is one that any reader of JSON takes."""
    for line in (outcome.folder / "out" / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line, parse_constant=_no_number)
        turns = row.get("conversations", [{"role": "text", "content": row.get("text")}])
        if not all(isinstance(turn["role"], str) and isinstance(turn["content"], str) for turn in turns):
            return "a turn without a role or a text"
    return None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _shown(path: tuple) -> str:
    return ".".join(map(str, path))


def _is_wrong(path: tuple, value: Any) -> bool:
    """Tells whether a field that must hold text holds something else."""
    is_text = path[-1] in TEXTS and not (path[0] in ("tools", "functions") or "tool_calls" in path)
    return is_text and isinstance(value, bool | int | float | dict) and bool(value)


def _random_row(random: Random) -> Any:
    """Returns a row of one layout with a few fields changed, dropped or taken from another."""
    row = json.loads(json.dumps(random.choice(list(LAYOUTS.values()))))
    for _ in range(random.randint(0, 3)):
        paths = list(fields_of(row))
        if not paths:
            break
        value = random.choice([*ODD, *LAYOUTS.values(), row])
        row = with_value(row, random.choice(paths), value)
    if random.random() < 0.2:
        row |= random.choice(list(LAYOUTS.values()))
    return row


def _jsonl(rows: list, _: Random) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def _damaged(rows: list, random: Random) -> bytes:
    """Writes JSONL in which a few bytes are changed, left out or put in."""
    content = bytearray(_jsonl(rows, random))
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content))
        content[at:at + random.randint(0, 2)] = random.choice(DAMAGE)
    return bytes(content)


def _wrapped(rows: list, random: Random) -> bytes:
    key = random.choice(["data", "train", "rows", "", "conversations", "\u0000"])
    return json.dumps({"version": 1, key: rows}, indent=random.choice([None, 2])).encode()


def _table(delimiter: str) -> Callable[[list, Random], bytes]:
    def pack(rows: list, _: Random) -> bytes:
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.writer(text, delimiter=delimiter)
        table.writerow(names)
        for row in rows:
            cells = (row.get(name, "") for name in names)
            table.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
        return text.getvalue().encode("utf-8", "surrogatepass")
    return pack


def _arrow(kind: str) -> Callable[[list, Random], bytes]:
    def pack(rows: list, random: Random) -> bytes:
        """Writes the rows as columns of their types; as JSON in text where they have different ones."""
        import pyarrow
        import pyarrow.parquet
        try:
            table = pyarrow.Table.from_pylist(rows)
            if any("null" in str(field.type) or field.type == pyarrow.struct([]) for field in table.schema):
                raise pyarrow.ArrowInvalid("Parquet has no such column")
        except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
            table = pyarrow.table({name: [json.dumps(row.get(name)) for row in rows] for name in rows[0]})
        if random.random() < 0.3 and table.num_columns:  # a type that JSON does not have
            odd = random.choice([b"\xff\xfe", 10**18, base64.b64decode("AAAA")])
            table = table.append_column("odd", pyarrow.array([odd] * table.num_rows))
        sink = io.BytesIO()
        if kind == "parquet":
            pyarrow.parquet.write_table(table, sink, compression=random.choice(["snappy", "zstd", "none"]))
        else:
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        return sink.getvalue()
    return pack


FILES: dict[str, Callable[[list, Random], bytes]] = {
    ".jsonl": _jsonl, ".ndjson": _damaged, ".json": _wrapped, ".csv": _table(","), ".tsv": _table("\t"),
    ".parquet": _arrow("parquet"), ".arrow": _arrow("arrow"), ".txt": _damaged,
    ".json.gz": lambda rows, random: gzip.compress(json.dumps(rows, indent=random.choice([None, 2])).encode()),
    ".jsonl.gz": lambda rows, random: gzip.compress(_damaged(rows, random)),
}
