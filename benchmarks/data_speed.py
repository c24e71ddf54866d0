"""Times data preparation and measures its memory, beside bare tokenization, Hugging Face's `map` and TRL.

    python benchmarks/data_speed.py alpaca_zh_10k.json --rows 40000 --repeat 3
    python benchmarks/data_speed.py alpaca_zh_10k.json --bytes 1.7e9 --skip_peers

Needs rows of question and answer in any format that training reads. They are repeated, each time with another number at
the end of the question, until there are `--rows` of them or the file has `--bytes`. The contenders run in processes of
their own and take turns; the medians count. Memory is the largest sum of the proportional set sizes of a contender's
processes (shared pages count once, pages of mapped files count too).

    bare      `encode_batch_fast` on rendered texts (at most 50,000): the tokenizer's own speed, on all cores
    ours      what training does with a new file: hashing, reading, checking, rendering, masks, writing
    again     what training does with a known file: hashing it and mapping the prepared data
    map       datasets' `map` with two processes, a row at a time: apply_chat_template to ids, no mask
    batched   the same with 1,000 rows at a time
    TRL       SFTTrainer's own preparation of conversational prompt/completion rows, two processes

Finally the trainer runs for one step on a file of one row and on the prepared file, in turns: the difference is the
cost of starting again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path

from tqdm import tqdm

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.conversation import canonical_row, parse_conversation
from minimind_sft.data.prepared import prepare
from minimind_sft.data.reading import parse_raw_row, read_raw_rows, read_rows
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.paths import REPOSITORY

MODEL = REPOSITORY / "model"
MAX_SEQ_LEN = 768
PEERS = ("map", "batched", "TRL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="rows of question and answer")
    parser.add_argument("--rows", type=int, default=40_000, help="how many rows to prepare (default: 40000)")
    parser.add_argument("--bytes", type=float, default=0, help="prepare a file of this size instead")
    parser.add_argument("--repeat", type=int, default=3, help="how often each contender runs (default: 3)")
    parser.add_argument("--skip_peers", action="store_true", help="leave out datasets and TRL")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        rows, seconds = CONTENDERS[arguments.contender](arguments.file, arguments.folder)
        print(json.dumps({"rows_per_second": rows / seconds}))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        rows = write_rows(arguments.file, data, arguments.rows, int(arguments.bytes))
        names = [name for name in CONTENDERS if not (arguments.skip_peers and name in PEERS)]
        results = measure(names, data, Path(folder), arguments.repeat)
        print(f"{rows:,} rows, {data.stat().st_size / 1e6:,.1f} MB, {os.cpu_count()} cores, "
              f"medians of {arguments.repeat}")
        report = {"rows": rows, "bytes": data.stat().st_size, "cores": os.cpu_count(), "repeat": arguments.repeat,
                  "contenders": table(results), "starts": starts(data, Path(folder), arguments.repeat)}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def write_rows(source: Path, target: Path, rows: int, size: int) -> int:
    """Repeats the rows of `source`, no two alike; returns their number."""
    good = []
    for raw in read_raw_rows(source):
        try:
            good.append(canonical_row(parse_conversation(parse_raw_row(raw), raw.place)))
        except UserError:
            continue
    written = 0
    with target.open("w", encoding="utf-8") as file:
        for number in count():
            if file.tell() >= size if size else number >= rows:
                return written
            (question, answer) = good[number % len(good)]["conversations"][:2]
            question = {**question, "content": f"{question['content']} ({number})"}
            file.write(json.dumps({"conversations": [question, answer]}, ensure_ascii=False) + "\n")
            written += 1


def measure(names: list[str], data: Path, folder: Path, repeat: int) -> dict[str, list[tuple[float, float]]]:
    """Runs the contenders in turns; returns (rows/s, MiB) of every run of each."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tqdm(total=repeat * len(names), unit=" runs") as bar:
        for turn in range(repeat):
            for name in names:
                bar.set_description(name)
                command = [sys.executable, __file__, str(data), "--contender", name,
                           "--folder", str(folder / str(turn))]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                           env={**os.environ, "HF_HOME": str(folder / f"hf{turn}")})
                memory = PeakMemory(process.pid)
                output, _ = process.communicate()
                if process.returncode:
                    raise SystemExit(f"{name} failed")
                results[name].append((json.loads(output.splitlines()[-1])["rows_per_second"], memory.stop()))
                bar.update()
    return results


def table(results: dict[str, list[tuple[float, float]]]) -> dict[str, dict]:
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)]
               for name, runs in results.items()}
    bare = medians["bare"][0]
    print(f"{'contender':<10}{'rows/s':>12}{'of bare':>9}{'peak MiB':>10}")
    report = {}
    for name, (speed, memory) in medians.items():
        print(f"{name:<10}{speed:>12,.0f}{speed / bare:>9.2f}{memory:>10,.0f}")
        report[name] = {"rows_per_second": [round(run[0]) for run in results[name]], "of_bare": round(speed / bare, 3),
                        "peak_mib": round(memory)}
    return report


def starts(data: Path, folder: Path, repeat: int) -> dict[str, float]:
    """Returns the seconds of whole runs of one step, and the peak memory of the one on `data`, which is prepared in
    `folder`/0."""
    single = folder / "single.jsonl"
    with data.open(encoding="utf-8") as file:
        single.write_text(file.readline(), encoding="utf-8")
    seconds: dict[Path, list[float]] = {single: [], data: []}
    memory = 0.0
    for _ in range(repeat):
        for path, times in seconds.items():
            command = [sys.executable, str(REPOSITORY / "trainer/train_full_sft.py"), "--from_weight", "none",
                       "--hidden_size", "64", "--num_hidden_layers", "1", "--max_steps", "1", "--eval_share", "0",
                       "--data_path", str(path), "--prepared_dir", str(folder / "0"), "--save_dir", str(folder / "out"),
                       "--overwrite"]
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       start_new_session=True)
            peak = PeakMemory(process.pid)
            if process.wait():
                raise SystemExit(f"the trainer failed on {path}")
            times.append(time.perf_counter() - start)
            memory = max(memory, peak.stop())
    of_one_row, of_all = (statistics.median(times) for times in seconds.values())
    print(f"a training of one step: {of_one_row:.1f} s on one row, {of_all:.1f} s on the prepared file "
          f"({memory:,.0f} MiB)")
    return {"one_row_seconds": round(of_one_row, 2), "prepared_seconds": round(of_all, 2), "peak_mib": round(memory)}


class PeakMemory:
    """Samples, four times a second, the sum of the proportional set sizes of a session's processes."""

    def __init__(self, session: int):
        self._session, self._peak, self._stopped = session, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Returns the peak in MiB."""
        self._stopped.set()
        self._thread.join()
        return self._peak / 1024

    def _watch(self) -> None:
        while not self._stopped.wait(0.25):
            self._peak = max(self._peak, sum(proportional_set_size(process) for process in self._processes()))

    def _processes(self) -> Iterator[Path]:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._session:
                yield process


def proportional_set_size(process: Path) -> int:
    """Returns KiB; 0 for a process that is gone."""
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def bare(data: Path, folder: Path) -> tuple[int, float]:
    import tokenizers

    template = make_template(Tokenizer.from_folder(MODEL))
    texts = [template.render(row["conversations"], thinking=False) for _, row in islice(read_rows(data), 50_000)]
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    start = time.perf_counter()
    for first in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch_fast(texts[first:first + 1000], add_special_tokens=False):
            assert encoding.ids
    return len(texts), time.perf_counter() - start


def ours(data: Path, folder: Path) -> tuple[int, float]:
    rows = SFTEncoder(make_template(Tokenizer.from_folder(MODEL)), MAX_SEQ_LEN)
    start = time.perf_counter()
    dataset = prepare([data], rows, folder, show_progress=False)
    seconds = time.perf_counter() - start
    return dataset.counts.rows, seconds


def hugging_face_map(data: Path, folder: Path, batched: bool = False) -> tuple[int, float]:
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    start = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(data), split="train")

    def encode(row_or_rows: dict) -> dict:
        return tokenizer.apply_chat_template(row_or_rows["conversations"], return_dict=True)

    mapped = rows.map(encode, batched=batched, num_proc=2, remove_columns=rows.column_names)
    seconds = time.perf_counter() - start
    assert len(mapped[0]["input_ids"]) > 10
    return len(mapped), seconds


def trl(data: Path, folder: Path) -> tuple[int, float]:
    import datasets
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=6400, hidden_size=32, num_hidden_layers=1, intermediate_size=32,
                                         num_attention_heads=2, num_key_value_heads=1))
    pairs = datasets.Dataset.from_list([{"prompt": row["conversations"][:1], "completion": row["conversations"][1:]}
                                        for _, row in read_rows(data)])
    seconds = 0.0
    prepare_theirs = SFTTrainer._prepare_dataset

    def timed(*arguments: object, **keywords: object) -> object:
        nonlocal seconds
        start = time.perf_counter()
        prepared = prepare_theirs(*arguments, **keywords)
        seconds += time.perf_counter() - start
        return prepared

    SFTTrainer._prepare_dataset = timed
    trainer = SFTTrainer(model, args=SFTConfig(output_dir=str(folder / "trl"), dataset_num_proc=2, report_to="none",
                                               max_length=MAX_SEQ_LEN, use_cpu=True),
                         train_dataset=pairs, processing_class=tokenizer)
    assert len(trainer.train_dataset[0]["input_ids"]) > 10
    return len(trainer.train_dataset), seconds


CONTENDERS: dict[str, Callable[[Path, Path], tuple[int, float]]] = {
    "bare": bare, "ours": ours, "again": ours, "map": hugging_face_map,
    "batched": partial(hugging_face_map, batched=True), "TRL": trl}

if __name__ == "__main__":
    main()
