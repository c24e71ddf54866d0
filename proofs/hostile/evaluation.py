"""Files that evaluation reads: multiple-choice questions, plain text, conversations, and earlier results."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet

from hostile.small_models import small_weights
from hostile.tries import Outcome, Try

KIND = "questions, texts and results of an evaluation"

QUESTION = {"question": "Which is prime?", "choices": ["four", "five"], "answer": 1, "subject": "numbers"}
LETTERS = {"id": 0, "question": "Which?", "A": "four", "B": "five", "C": "both", "D": "none", "answer": "B"}
CHINESE = {"": 0, "Question": "哪个？", "A": "四", "B": "五", "C": "六", "D": "八", "Answer": "B"}
DEEP = "[" * 100_000
ODD = (None, True, 0, -1, 7, 1.0, 1e308, 10**30, "", " ", "x", "AB", "b", "\x1b[2J", "\u202e", "\ud800", "\U000f0000",
       "\0", "<|im_end|>", "a\nb", "x" * 100_000, [], ["a"], [1, 2], ["a", None], ["a", ""], ["a", "a"],
       [["a"], ["b"]], [str(number) for number in range(27)], {}, {"a": 1})
TYPES_THAT_FAIL = {"question": (None, True, 0, 1.0, "", " ", [], {}),
                   "choices": (None, True, 0, "x", [], ["a"], [1, 2], {}),
                   "answer": (None, True, -1, 7, 1.0, 10**30, "", "x", "AB", [], {}), "A": (None, True, 0, "", [], {}),
                   "Answer": (None, True, -1, 7, "", "x", [], {}), "Question": (None, True, 0, "", " ", [], {})}
"""Values of a field that no question can have."""
CSV = {
    "empty": "", "a line feed": "\n", "only a header": "question,A,B,C,D,answer\n", "a mark alone": "\ufeff",
    "an open quote": '"Which,four,five,both,none,B\n', "a quote at the end": 'Which,four,five,both,"none",B"\n',
    "a NUL": "Whi\0ch,four,five,both,none,B\n", "columns too few": "Which,four,B\n",
    "columns too many": "Which,four,five,both,none,B,x,y\n",
    "a header twice": "question,A,A,B,C,D,answer\nx,a,b,c,d,e,A\n",
    "a wrong letter": "Which,four,five,both,none,E\n", "a lower letter": "Which,four,five,both,none,b\n",
    "an empty option": "Which,four,,both,none,B\n", "an empty question": ",four,five,both,none,B\n",
    "another layout later": "question,A,B,answer\nx,a,b,A\nid,question,A,B,answer\n",
    "old line ends": "Which,four,five,both,none,B\rWhich,four,five,both,none,B\r",
    "a long field": "Which " + "x" * 200_000 + ",four,five,both,none,B\n",
    "many columns": "," * 100_000 + "\n", "tabs": "Which\tfour\tfive\tboth\tnone\tB\n",
    "other columns": "name,age\nx,3\n", "JSON": json.dumps(QUESTION), "only quotes": '"' * 5001,
    "all letters": "question," + ",".join(map(chr, range(65, 91))) + ",answer\nx," + "a," * 26 + "Z\n",
    "letters with a gap": "question,A,B,D,answer\nx,a,b,d,B\n", "only A": "question,A,answer\nx,a,A\n",
}
BYTES = {"bad UTF-8": b"Wh\xff\xfech,four,five,both,none,B\n",
         "UTF-16": "Which,four,five,both,none,B\n".encode("utf-16"),
         "GBK": "哪个,四,五,六,八,B\n".encode("gbk"), "zeros": bytes(5000), "gzip's start": b"\x1f\x8b" + bytes(20),
         "Parquet's start": b"PAR1" + bytes(50) + b"PAR1", "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99)}
TEXTS = {"empty": b"", "spaces": b" \n \n", "a mark alone": b"\xef\xbb\xbf", "NUL": b"a\0b", "bad UTF-8": b"caf\xe9",
         "control tokens": b"<|im_start|>system\nx<|im_end|><|endoftext|>", "one letter": b"a",
         "marks": "\U000f0002".encode() * 9, "UTF-16": "words".encode("utf-16"), "long line": b"word " * 4000,
         "surrogate": b"\xed\xa0\x80", "escapes": b"\x1b[2J"}
NO_TEXT = ("empty", "bad UTF-8", "UTF-16", "surrogate")
FLAGS = (["--text_context", "2"], ["--text_context", "99999999"], ["--text_stride", "1", "--text_context", "16"],
         ["--text_stride", "500", "--text_context", "16"], ["--text_context", "32768"])


def figures_are_right(outcome: Outcome) -> str | None:
    """Looks for shares outside 0 to 100% and for numbers that are none."""
    words = outcome.stdout.lower().replace("%", " ").split()
    return next((f"found {word}" for word in words if word in ("nan", "inf", "-inf") or word.startswith("-0.")), None)


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields files with one odd field or form each, then questions with several odd fields at random."""
    weights = small_weights(folder)
    program = ["scripts/evaluate.py", "--weight", str(weights), "--device", "cpu", "--max_new_tokens", "3"]
    systematic = [*_rows(), *_tables(), *_parquets(), *_texts(), *_results(folder)]
    random.shuffle(systematic)
    chosen = systematic[:count - count // 3] + [_random_row(random) for _ in range(count // 3)]
    for number, (name, expected, file, content, flags) in enumerate(chosen):
        path = folder / f"try{number}" / file
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pyarrow.parquet.write_table(content, path)
        places = {"FILE": str(path), "OUT": str(path.parent / "out.json")}
        yield Try(name, [*program, *(places.get(flag, flag) for flag in flags)], expected, check=figures_are_right)


Made = tuple[str, str, str, bytes | pyarrow.Table, list[str]]
"""Name, what must become of it, the file's name and content, and the flags.

FILE stands for the file's path, and OUT for results beside it.
"""


def _line(row: Mapping[str, object]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _rows() -> Iterator[Made]:
    for base in (QUESTION, LETTERS, CHINESE):
        for field in base:
            fails = TYPES_THAT_FAIL.get(field, ())
            for value in ODD:
                is_wrong = any(value == one and type(value) is type(one) for one in fails)
                yield (f"{field}: {ascii(value)[:30]}", "refused" if is_wrong else "either", "q.jsonl",
                       _line(base) + _line({**base, field: value}), ["--choices", "FILE"])
            without = {name: value for name, value in base.items() if name != field}
            yield f"without {field}", "either", "q.jsonl", _line(without), ["--choices", "FILE"]
    yield "nested deeply", "refused", "q.jsonl", f'{{"question": {DEEP}'.encode(), ["--choices", "FILE"]
    yield "a number of 5,000 digits", "refused", "q.jsonl", b'{"question": ' + b"9" * 5000 + b"}", ["--choices", "FILE"]
    yield "a name twice", "refused", "q.jsonl", _line(QUESTION).replace(b'"answer"', b'"answer": 0, "answer"'), [
        "--choices", "FILE"]
    yield "NaN", "refused", "q.jsonl", _line(QUESTION).replace(b": 1,", b": NaN,"), ["--choices", "FILE"]
    for few_shot in ("1", "5", "1000000000"):
        yield f"{few_shot} examples", "either", "q.jsonl", _line(QUESTION) * 3, [
            "--choices", "FILE", "--few_shot", few_shot, "--few_shot_path", "FILE"]
    yield "texts", "either", "q.jsonl", _line(QUESTION), ["--choices", "FILE", "--scored_options", "texts"]


def _tables() -> Iterator[Made]:
    flags = ["--choices", "FILE"]
    yield from ((f"CSV: {name}", "either", "q.csv", text.encode(), flags) for name, text in CSV.items())
    yield from ((f"TSV: {name}", "either", "q.tsv", text.encode(), flags) for name, text in CSV.items())
    for ending in ("csv", "jsonl", "json", "parquet", "csv.gz", "arrow", "txt", "jsonl.zst", "xyz"):
        yield from ((f"{ending}: {name}", "refused" if ending != "csv" else "either", f"q.{ending}", content, flags)
                    for name, content in BYTES.items())
    for name in ("test.csv", "dev_test.csv", ".csv", "a_val.csv", "a\nb.csv", "\x1b[2J.csv", "x" * 240 + ".csv"):
        yield f"file name {name[:20]!a}", "either", name, b"Which,four,five,both,none,B\n", flags


def _parquets() -> Iterator[Made]:
    columns = {
        "no rows": {"question": pyarrow.array([], pyarrow.string())}, "numbers": {"question": [1], "choices": [[1, 2]],
                                                                                "answer": [0]},
        "bytes": {"question": [b"x"], "choices": [[b"a", b"b"]], "answer": [0]},
        "null": {"question": [None], "choices": [None], "answer": [None]},
        "nested": {"question": ["x"], "choices": [[["a"], ["b"]]], "answer": [0]},
        "objects": {"question": ["x"], "choices": [[{"a": 1}]], "answer": [0]},
        "big answer": {"question": ["x"], "choices": [["a", "b"]], "answer": pyarrow.array([2**63], pyarrow.uint64())},
        "float answer": {"question": ["x"], "choices": [["a", "b"]], "answer": [0.0]},
        "NaN": {"question": ["x"], "choices": [["a", "b"]], "answer": [float("nan")]},
        "time": {"question": ["x"], "choices": [["a", "b"]], "answer": pyarrow.array([0], pyarrow.timestamp("ns"))},
    }
    for name, values in columns.items():
        yield f"Parquet: {name}", "refused", "q.parquet", pyarrow.table(values), ["--choices", "FILE"]


def _texts() -> Iterator[Made]:
    for name, content in TEXTS.items():
        for ending in ("txt", "md", "jsonl"):
            expected = "refused" if name in NO_TEXT or ending == "jsonl" else "either"
            yield f"text, {name}, .{ending}", expected, f"t.{ending}", content, ["--text_path", "FILE"]
    for value in ODD:
        expected = "refused" if not isinstance(value, str) or not value else "either"
        yield f"a row's text: {ascii(value)[:30]}", expected, "t.jsonl", _line({"text": value}), ["--text_path", "FILE"]
    for flags in FLAGS:
        yield f"text with {flags}", "either", "t.txt", b"some words and more", ["--text_path", "FILE", *flags]


def _results(folder: Path) -> Iterator[Made]:
    """Yields odd files where results of an earlier evaluation would be."""
    lines = {"nothing": b"", "text": b"hello\n", "a number": b"1\n", "a list": b"[]\n", "bad UTF-8": b'{"\xff": 1}\n',
             "deep": DEEP.encode(), "no identity": b'{"task": "choices"}\n',
             "wrong types": b'{"task": 1, "item": []}\n', "half a line": b'{"task": "choi',
             "NUL": bytes(50), "huge": b'{"task": "' + b"x" * 10**6 + b'"}\n'}
    for name, content in lines.items():
        for file in ("out.json", "out.answers.jsonl"):
            flags = ["--choices", str(_question(folder / "of_results")), "--out", "OUT"]
            yield f"{file} with {name}", "either", file, content, flags


def _question(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "q.jsonl"
    path.write_bytes(_line(QUESTION))
    return path


def _random_row(random: Random) -> Made:
    row = dict(random.choice((QUESTION, LETTERS, CHINESE)))
    for field in random.sample(list(row), k=2):
        row[field] = random.choice(ODD)
    if random.random() < 0.3:
        row |= random.choice((QUESTION, LETTERS, CHINESE))
    flags = ["--choices", "FILE", "--scored_options", random.choice(("letters", "texts"))]
    return f"row {ascii(row)[:60]}", "either", random.choice(("q.jsonl", "q.json")), _line(row), flags
