"""Files that programs read back to go on or to report: metrics, an evaluation's answers, the output of a batch."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile.odd_values import ODD_VALUES, fields_of, with_value
from hostile.programs import succeed
from hostile.small_runs import SFT, TOKENIZER, finished, flags_in, same_result
from hostile.tries import Outcome, Try

KIND = "metrics, answers and batches that somebody changed"

EVALUATE, CHAT = "scripts/evaluate.py", "eval_llm.py"
COMPARE, PLOT = "scripts/compare_runs.py", "scripts/plot_metrics.py"
CONTENTS = (b"", b"\n", b"\n\n", b"note", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"a": 1, "a": 2}\n', b"\0" * 100,
            b"[1]\n", b"null\n", b'{"step": ' + b"9" * 5000 + b"}\n", b"\xef\xbb\xbf{}\n",
            "{}\u2028{}\n".encode("utf-16"))
CASES = {"metrics": ("out/tiny_16_metrics.jsonl",), "answers": ("r.answers.jsonl", "r.json"),
         "batch": ("b.jsonl", "b.jsonl.run.json")}
"""The files of each case that are changed."""


def tries(folder: Path, random: random.Random, count: int) -> Iterator[Try]:
    base = finished(folder / "finished", SFT)
    _evaluate_once(base.folder)
    every = [(case, file, name, content) for case, files in CASES.items() for file in files
             for name, content in [("untouched", (base.folder / file).read_bytes()),
                                   *_changed((base.folder / file).read_bytes(), random)]]
    right = [one for one in every if one[2] == "untouched"]
    right = random.sample(right, min(len(right), max(count // 3, 1)))
    others = [one for one in every if one[2] != "untouched"]
    for case, file, name, content in [*right, *random.sample(others, min(count - len(right), len(others)))]:
        run = base.copy(folder / "run")
        if content is None:
            (run.folder / file).unlink()
            os.mkfifo(run.folder / file)
        else:
            (run.folder / file).write_bytes(content)
        commands = {"metrics": [(*flags_in(run.folder, run), "--from_resume", "1"),
                                (COMPARE, str(run.folder / file), str(base.folder / file), "--html",
                                 str(run.folder / "page.html")),
                                (PLOT, str(run.folder / file), "--out", str(run.folder / "curves.png"))],
                    "answers": [_evaluation(run.folder)], "batch": [_batch(run.folder)]}[case]
        for command in [random.choice(commands)] if name != "untouched" else commands:
            yield Try(f"{Path(command[0]).name}: {Path(file).name}: {name}", command,
                      "accepted" if name == "untouched" else "either",
                      check=same_result if command[0] == SFT else _are_results)


def _changed(whole: bytes, random: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Yields the content of a file with a field, a line or all of it changed; None stands for a pipe."""
    yield "a pipe", None
    for content in CONTENTS:
        yield f"{content[:20]!r}", content
        yield f"{content[:20]!r} after its lines", whole + content
        yield f"{content[:20]!r} before its lines", content + whole
    for size in random.sample(range(len(whole)), 5):
        yield f"cut at {size}", whole[:size]
        yield f"a byte changed at {size}", whole[:size] + bytes([random.randrange(256)]) + whole[size + 1:]
    try:
        lines: list[Any] = [json.loads(whole)]
    except ValueError:
        lines = [json.loads(line) for line in whole.splitlines()]
    for number in sorted(random.sample(range(len(lines)), min(4, len(lines)))):
        for path in fields_of(lines[number]):
            for value in ODD_VALUES:
                changed = [*lines[:number], with_value(lines[number], path, value), *lines[number + 1:]]
                yield (f"{number + 1}: {'.'.join(map(str, path))} is {ascii(value)[:40]}",
                       "".join(json.dumps(line) + "\n" for line in changed).encode())


def _evaluate_once(folder: Path) -> None:
    """Evaluates the run's weights and answers a batch, so that there is something to go on from."""
    (folder / "q.csv").write_text("What is it?,this,that,those,none,A\nAnd then?,this,that,those,none,C\n")
    (folder / "text.txt").write_text("Say it again. " * 20)
    succeed(folder, *_evaluation(folder))
    succeed(folder, *_batch(folder))


def _model(folder: Path) -> tuple[str, ...]:
    return ("--weight", str(folder / "weights/tiny_16.pth"), "--device", "cpu", "--dtype", "float32",
            "--tokenizer_path", TOKENIZER)


def _evaluation(folder: Path) -> tuple[str, ...]:
    _keep_weights(folder)
    return (EVALUATE, *_model(folder), "--data_path", str(folder / "rows.jsonl"), "--choices", str(folder / "q.csv"),
            "--text_path", str(folder / "text.txt"), "--max_new_tokens", "4", "--out", str(folder / "r.json"))


def _batch(folder: Path) -> tuple[str, ...]:
    _keep_weights(folder)
    return (CHAT, *_model(folder), "--batch_in", str(folder / "rows.jsonl"), "--batch_out", str(folder / "b.jsonl"),
            "--max_new_tokens", "4", "--batch_size", "3")


def _keep_weights(folder: Path) -> None:
    """Copies the weights to where resuming the run does not replace them."""
    if not (folder / "weights").exists():
        (folder / "weights").mkdir()
        for name in ("tiny_16.pth", "tiny_16.json"):
            shutil.copy(folder / "out" / name, folder / "weights" / name)


def _are_results(outcome: Outcome) -> str | None:
    """Checks that what is there afterwards can be read as what it is."""
    folder = outcome.folder / "run"
    for name, is_lines in (("r.json", False), ("b.jsonl", True)):
        text = (folder / name).read_text(encoding="utf-8")
        if "NaN" in text or "Infinity" in text:
            return f"{name} holds a number that is not finite"
        for part in text.splitlines() if is_lines else [text]:
            json.loads(part)
    return None
