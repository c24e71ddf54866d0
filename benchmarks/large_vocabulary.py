"""Fine-tunes a model with a large vocabulary, and compares its memory with the estimate.

    python benchmarks/large_vocabulary.py --json benchmarks/results/large_vocabulary.json

The model has the shape of Qwen2.5-0.5B (151,936 tokens x 896) and random weights: transformers writes its folder.
trainer/train_full_sft.py then takes ten steps from it with --gradient_checkpointing 1, once with everything trained and
once with `--freeze embed_tokens`, each in a process of its own. The peak is the resident memory of the whole process,
loading and saving included; scripts/estimate_memory.py predicts it from the same folder. All tokens are learned, so
that the head computes as much as it ever does. Takes 12 GiB of disk for a while.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from minimind_sft.errors import run_program
from minimind_sft.paths import REPOSITORY

QWEN2_5_05B = {"vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
               "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True,
               "max_position_embeddings": 32_768}
MICRO_BATCH = ["--max_seq_len", "512", "--micro_batch_tokens", "1024", "--gradient_checkpointing", "1"]
RUN = ["--data_path", str(REPOSITORY / "dataset/sft_demo.jsonl"), "--batch_size", "64", "--train_on_prompt", "1",
       "--eval_share", "0", "--log_interval", "1", "--learning_rate", "1e-5", "--overwrite"]
FREEZE = {"everything trains": [], "--freeze embed_tokens": ["--freeze", "embed_tokens"]}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="fewer layers take less time (default: 24)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    shape, rows = {**QWEN2_5_05B, "num_hidden_layers": arguments.layers}, []
    print(f"{'':<24}{'predicted':>12}{'measured':>12}{'':>8}{'tokens/s':>10}")
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "out") as folder:
        model = Path(folder, "model")
        write_random_folder(model, shape)
        for name, freeze in FREEZE.items():
            start = ["--from_weight", str(model), "--tokenizer_path", "bundled", *MICRO_BATCH, *freeze]
            estimate = json.loads(run("scripts/estimate_memory.py", *start, "--json")[0])
            peak, rate = train(start, arguments.steps, Path(folder, "out"))
            rows.append({"run": name, "predicted_gib": estimate["peak"] / GIB, "measured_gib": peak / GIB,
                         "tokens_per_second": rate,
                         "predicted_parts_mib": {part: size / 2**20 for part, size in estimate["parts"].items()}})
            print(f"{name:<24}{estimate['peak'] / GIB:>8.2f} GiB{peak / GIB:>8.2f} GiB"
                  f"{estimate['peak'] / peak - 1:>+8.0%}{rate:>10.0f}", flush=True)
    if arguments.json:
        record = {"command": " ".join(["python", "benchmarks/large_vocabulary.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "threads": torch.get_num_threads(), "model": shape,
                  "flags": [*MICRO_BATCH, *RUN[2:]], "steps": arguments.steps, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_random_folder(path: Path, shape: dict[str, Any]) -> None:
    """Writes a Hugging Face folder, in bfloat16 as Qwen's own; in a process of its own, whose memory goes with it."""
    code = ("import sys, json, torch, transformers\n"
            "torch.set_default_dtype(torch.bfloat16)\n"
            "config = transformers.Qwen2Config(**json.loads(sys.argv[2]))\n"
            "transformers.Qwen2ForCausalLM(config).save_pretrained(sys.argv[1])")
    subprocess.run([sys.executable, "-c", code, str(path), json.dumps(shape)], check=True, capture_output=True)


def train(start: list[str], steps: int, out: Path) -> tuple[int, float]:
    """Returns the peak memory of a run in bytes, and the median of its steps' tokens per second."""
    _, peak = run("trainer/train_full_sft.py", *start, *RUN, "--max_steps", str(steps), "--save_dir", str(out))
    (metrics,) = out.glob("*_metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return peak, statistics.median(line["supervised_tokens_per_second"] for line in lines if "loss" in line)


def run(program: str, *flags: str) -> tuple[str, int]:
    """Runs a program of this repository; returns its output and its peak resident memory in bytes.

    Raises:
        RuntimeError: if it fails, with its output.
    """
    search = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, str(REPOSITORY / program), *flags], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": search})
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{program} {' '.join(flags)}: {output[-2000:]}")
    return output, usage.ru_maxrss * 1024


if __name__ == "__main__":
    run_program(main)
