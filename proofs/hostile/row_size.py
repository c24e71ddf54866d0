"""Rows and files that are small on the disk, or in one respect, and huge in another."""

import bz2
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from hostile.rows import TINY, weights_are_there
from hostile.tries import Try

KIND = "sizes of rows and of packed files"

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
UNTRAINED = {"role": "assistant", "content": "", "train": False}
MIB = 2**20
SECONDS = 200.0
"""Most need a few; the longest row has 16 million tokens."""
LONGEST = ("digits", "emoji", "marks")
"""Contents with the most tokens, the most bytes and the most attempts at control tokens."""
Maker = Callable[[Random], bytes]
CHARACTERS = {"letters": "abc", "digits": "0123456789", "line ends": "a\n", "Chinese": "的一是不了在人有我",
              "rare Chinese": "龘靐齉爩鱻", "emoji": "😀🧨🦖", "NUL": "\x00", "spaces": " ", "marks": "\U000F0002"}
SMALL_VALUES = {"lists": "[]", "objects": "{}", "numbers": "1.5", "whole numbers": "12345", "texts": '"ab"',
                "empty texts": '""', "nulls": "null", "nested lists": "[[[[1]]]]"}


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields each kind of row with each kind of content, in random order; with `count` above their number, again."""
    makers = [*_conversations(), *_json_rows(), *_texts(), *_packed(), *_tables()]
    random.shuffle(makers)
    for number in range(count):
        name, suffix, expected, make = makers[number % len(makers)]
        shutil.rmtree(folder / "out", ignore_errors=True)
        for old in folder.glob("data.*"):
            old.unlink()
        path = folder / f"data{suffix}"
        path.write_bytes(make(random))
        flags = ["--truncation", "turns"] if "turns" in name else []
        program = "trainer/train_pretrain.py" if name.startswith(("text ", "text,")) else "trainer/train_full_sft.py"
        yield Try(f"{name}, {path.stat().st_size / MIB:.1f} MiB", [program, "--data_path", str(path), *TINY, *flags,
                  "--save_dir", str(folder / "out")], expected, check=weights_are_there, seconds=SECONDS)


Made = tuple[str, str, str, Maker]
"""A name for the content, its suffix, the expected outcome, and a function that makes the content."""


def _line(**fields: Any) -> bytes:
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode()


def _row(more: str) -> bytes:
    return f'{{"conversations": {json.dumps([USER, ANSWER])}, "more": {more}}}\n'.encode()


def _zstd(content: bytes) -> bytes:
    import pyarrow
    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": partial(gzip.compress, compresslevel=1), ".bz2": partial(bz2.compress, compresslevel=1),
    ".xz": partial(lzma.compress, preset=0), ".zst": _zstd}


def _conversations() -> Iterator[Made]:
    """Yields conversations with much in one respect."""
    def rendered_often(random: Random, **big: str) -> bytes:
        """Everything big is rendered for each of many answers."""
        answers = random.choice([100, 300, 600])
        name, where = next(iter(big.items()))
        text = name * (random.choice([10**5, 10**6, 5 * 10**6]) // len(name))
        tool = {"type": "function", "function": {"name": "f", "description": text}}
        call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": text}}]}
        return {
            "tools": lambda: _line(tools=[tool], conversations=[USER, ANSWER] * answers),
            "call": lambda: _line(conversations=[USER, call, {"role": "tool", "content": "1"}, ANSWER,
                                                 *[USER, ANSWER] * answers]),
            "reasoning": lambda: _line(conversations=[USER, {**ANSWER, "reasoning_content": text},
                                                      *[USER, ANSWER] * answers]),
            "system": lambda: _line(system=text, conversations=[USER, ANSWER] * answers),
            "result": lambda: _line(conversations=[USER, ANSWER, {"role": "tool", "content": text}, ANSWER,
                                                   *[USER, ANSWER] * answers]),
        }[where]()

    for where in ("tools", "call", "reasoning", "system", "result"):
        for text in ("x", "中", "😀"):
            yield (f"{where} of {text!a} for many answers", ".jsonl", "either",
                   partial(rendered_often, **{text: where}))
    for answers in (1500, 6000, 100_000):
        yield (f"{answers} untrained answers", ".jsonl", "refused",
               lambda _, answers=answers: _line(conversations=[USER, *[UNTRAINED] * answers, ANSWER]))
    for turns in (100, 600, 1200, 4000, 50_000):
        yield (f"{turns} short turns", ".jsonl", "either",
               lambda _, turns=turns: _line(conversations=[USER, ANSWER] * (turns // 2)))
    yield ("reasoning in each of 300 turns", ".jsonl", "either",
           lambda random: _line(conversations=[USER, {**ANSWER, "reasoning_content": "y" * random.choice([100, 50_000])}
                                               ] * 300))
    yield ("a million empty parts", ".jsonl", "either", lambda _: _line(
        messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 300_000}, ANSWER]))
    for name, characters in CHARACTERS.items():
        yield (f"a question of {name}", ".jsonl", "either", lambda random, characters=characters: _line(
            conversations=[{"role": "user", "content": _text(random, characters, 900_000)}, ANSWER]))
        yield (f"long turns of {name}", ".jsonl", "either", lambda random, characters=characters: _line(
            conversations=[{"role": "user", "content": _text(random, characters, 400_000)},
                           {"role": "assistant", "content": _text(random, characters, 400_000)}] * 2))


def _json_rows() -> Iterator[Made]:
    """Yields rows of many small values, in each layout of JSON."""
    for name, value in SMALL_VALUES.items():
        def many(size: int, value: str = value) -> str:
            return f"[{','.join([value] * (size // (len(value) + 1)))}]"

        for size in (MIB, 5 * MIB):
            yield f"{size // MIB} MiB of {name}", ".jsonl", "either", lambda _, many=many, size=size: _row(many(size))
        for beside in ("messages", "tools"):
            yield f"{name} in a text, as {beside}", ".jsonl", "either", lambda _, many=many, beside=beside: _line(**{
                "messages": [USER, ANSWER], beside: many(6 * MIB)})
        yield f"an array of {name}", ".json", "refused", lambda _, many=many: many(5 * MIB).encode()
        yield f"a wrapper of {name}", ".json", "refused", lambda _, many=many: f'{{"data": {many(5 * MIB)}}}'.encode()
        yield f"{name} before the rows", ".json", "refused", lambda _, many=many: (
            f'{{"a": {many(5 * MIB)}, "data": []}}'.encode())
    yield "1,000,000 names", ".jsonl", "either", lambda _: (
        _row(json.dumps({str(number): 1 for number in range(999_000)})))
    yield "brackets without end", ".json", "refused", lambda random: b"[" * (random.randrange(1, 20) * MIB)
    yield "objects without end", ".jsonl", "refused", lambda random: b'{"a":' * (random.randrange(1, 4) * MIB)
    yield "lines of one object", ".json", "refused", lambda _: b"{\n" + b' "a": 1,\n' * 200_000
    yield "commas", ".json", "refused", lambda _: b"[" + b"," * (20 * MIB)


def _texts() -> Iterator[Made]:
    """Yields running text: the longest row, one that is too long, and several."""
    for name, characters in CHARACTERS.items():
        size = 6 * MIB - 2 if name in LONGEST else 2 * MIB
        yield (f"text of {name}", ".txt", "either", lambda random, characters=characters, size=size: _cut(
            random, characters.replace("\n", ""), size))
    yield "text, too long", ".txt", "refused", lambda random: _cut(random, "abc", 40 * MIB)
    yield "text, ten long rows", ".txt", "either", lambda random: (_cut(random, "ab ", MIB // 2) + b"\n") * 10
    yield "text with one emoji, the longest row", ".txt", "either", lambda random: (
        "😀".encode() + _cut(random, "0123456789", 6 * MIB - 8))
    yield "text, quoted lines", ".csv", "either", lambda _: b'text\n"' + b"a\n" * (12 * MIB) + b'"\n'
    yield "text of blank lines", ".txt", "refused", lambda _: b" \n" * (4 * MIB)


def _packed() -> Iterator[Made]:
    """Yields packed files that unpack to something huge."""
    for suffix, pack in PACKERS.items():
        yield (f"text of zeros in {suffix}", f".txt{suffix}", "refused",
               lambda _, pack=pack: pack(bytes(300 * MIB)))
        yield (f"text of line ends in {suffix}", f".txt{suffix}", "refused",
               lambda _, pack=pack: pack(b"\n" * (300 * MIB)))
        yield (f"text of short lines in {suffix}", f".txt{suffix}", "either",
               lambda _, pack=pack: pack(b"a\n" * 30_000))
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**29, "mode": lzma.MODE_FAST, "nice_len": 273}]
    yield "a dictionary of 512 MiB", ".txt.xz", "refused", lambda _: lzma.compress(bytes(600 * MIB), filters=filters)


def _tables() -> Iterator[Made]:
    """Yields tables: columns, cells, rows and pages that are too many or too large."""
    yield "8 million columns", ".csv", "refused", lambda _: b"a," * (8 * MIB)
    yield "100,000 columns", ".csv", "either", lambda _: (
        b",".join(b"c%d" % number for number in range(100_000)) + b"\n1\n")
    yield "a record of many lines", ".csv", "either", lambda _: b"text,b\n" + b'"a\n",' * (8 * MIB)
    yield "8 million cells", ".tsv", "refused", lambda _: b"question\tanswer\n" + b"ab\t" * (5 * MIB)
    for kind in (".parquet", ".arrow"):
        pack = partial(_table, kind=kind)
        yield f"one text for every row{kind}", kind, "refused", lambda _, pack=pack: pack(
            {"text": lambda pyarrow: _repeated(pyarrow, "ab " * (4 * MIB), 1000)})
        yield f"one text for every turn{kind}", kind, "either", lambda _, pack=pack: pack(
            {"messages": lambda pyarrow: _turns(pyarrow, "ab " * MIB, 1000)})
        yield f"a row of 300 MiB{kind}", kind, "either", lambda _, pack=pack: pack(
            {"text": lambda pyarrow: pyarrow.array(["ab " * (100 * MIB), "a"])})
        yield f"10 million rows of nothing{kind}", kind, "refused", lambda _, pack=pack: pack(
            {"text": lambda pyarrow: pyarrow.nulls(10_000_000, pyarrow.string())})
        yield f"a list of 20 million nulls{kind}", kind, "either", lambda _, pack=pack: pack(
            {"messages": lambda pyarrow: pyarrow.ListArray.from_arrays([0, 20_000_000], pyarrow.nulls(
                20_000_000, pyarrow.string()))})
        yield f"64 rows of 8 MiB{kind}", kind, "either", lambda _, pack=pack: pack(
            {"text": lambda pyarrow: pyarrow.array(["ab " * (8 * MIB // 3)] * 64)}, dictionary=False)


def _text(random: Random, characters: str, count: int) -> str:
    return "".join(random.choices(characters, k=1000)) * (count // 1000)


def _cut(random: Random, characters: str, size: int) -> bytes:
    text = "".join(random.choices(characters, k=1000)).encode()
    return (text * (size // len(text) + 1))[:size].decode("utf-8", "ignore").encode()


def _repeated(pyarrow: Any, text: str, count: int) -> Any:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), [text])


def _turns(pyarrow: Any, text: str, count: int) -> Any:
    turns = pyarrow.StructArray.from_arrays([_repeated(pyarrow, "user", count), _repeated(pyarrow, text, count)],
                                            ["role", "content"])
    return pyarrow.ListArray.from_arrays([0, count], turns)


def _table(columns: dict[str, Callable[[Any], Any]], kind: str, dictionary: bool = True) -> bytes:
    import pyarrow
    import pyarrow.parquet
    table = pyarrow.table({name: make(pyarrow) for name, make in columns.items()})
    sink = io.BytesIO()
    if kind == ".parquet":
        pyarrow.parquet.write_table(table, sink, compression="zstd", use_dictionary=dictionary,
                                    dictionary_pagesize_limit=2**30)
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    return sink.getvalue()
