"""Metrics files as runs write them, with every kind of line, made by hand for tests of what reads them."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def start(step: int = 0, *, total_steps: int = 40, **about: Any) -> dict:
    """Returns the line of a run's start."""
    described = {
        "id": "0f3a", "name": "sft_32", "stage": "full_sft", "command": "python trainer/train_full_sft.py --epochs 2",
        "started": "2026-05-01T10:00:00+00:00", "total_steps": total_steps,
        "settings": {"learning_rate": 0.001, "epochs": 2, "keep_best": 1, "save_weight": "sft"},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 6400},
        "machine": {"device": "cpu", "cpu": "a processor"}, "versions": {"torch": "2.13.0", "minimind_sft": "0.1.0"},
        "data": [data("a.jsonl", "training", 300), data("e.jsonl", "evaluation", 20)]}
    return {"step": step, "run": {**described, **about}}


def data(name: str, role: str, rows: int) -> dict:
    """Returns the description of a file of a run."""
    return {"name": name, "role": role, "rows": rows, "samples": rows, "tokens": 30 * rows, "supervised": 10 * rows}


def trained(step: int, loss: float | None, **more: Any) -> dict:
    """Returns the line of a training step."""
    return {"step": step, "epoch": 0, "loss": loss, "learning_rate": 0.001, "grad_norm": 1.5,
            "supervised_tokens": 50 * step, "supervised_tokens_per_second": 500.0, "tokens_per_second": 1500.0,
            "peak_share": 0.4, "peak_memory_mib": 300.0, "data_seconds": 0.1, "step_seconds": 0.1 * step,
            "eval_seconds": 0.5, "save_seconds": 0.2, **more}


def evaluated(step: int, loss: float, **more: Any) -> dict:
    """Returns the line of an evaluation."""
    part = {"loss": loss, "token_accuracy": 0.5, "tokens": 200}
    perplexity = math.exp(loss) if loss < 700 else None
    return {"step": step, "eval_loss": loss, "perplexity": perplexity, "token_accuracy": 0.5, "eval_tokens": 200,
            "by_source": {"e.jsonl": part}, "by_kind": {"sum": part}, **more}


def ordinary(first_loss: float = 4.0, last_loss: float = 2.0, *, total_steps: int = 40, **about: Any) -> list[dict]:
    """Returns the lines of a run that finished; its losses fall evenly."""
    def loss(step: int) -> float:
        return first_loss + (last_loss - first_loss) * step / total_steps

    lines = [start(total_steps=total_steps, **about), evaluated(0, loss(0))]
    for step in range(1, total_steps + 1):
        lines.append(trained(step, loss(step)))
        if step % (total_steps // 4) == 0:
            lines.append(evaluated(step, loss(step)))
    return [*lines, {"step": total_steps, "end": "finished", "seconds": 12.5}]


def write_lines(path: Path, lines: Iterable[dict]) -> Path:
    """Writes a metrics file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
