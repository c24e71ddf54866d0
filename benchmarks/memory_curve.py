"""Shows that a run's memory grows with --micro_batch_tokens, but not with the batch size or the longest row.

    python benchmarks/memory_curve.py --json benchmarks/results/memory_curve.json \\
        --plot benchmarks/results/memory_curve.png

Each point is a process that takes real training steps (benchmarks/memory_probe.py). Its peak resident memory on a CPU,
or peak allocated memory on a GPU, is shown beside the prediction of scripts/estimate_memory.py.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from memory_probe import Probe, measure
from peak import timed_dtypes

from minimind_sft.model.config import PRESETS
from minimind_sft.training.memory import MIB, peak

FIXED = 2048
"""Tokens of a micro-batch while something else varies."""
ROW = 256


@dataclass(frozen=True)
class Point:
    """One process; `x` is the varied quantity."""

    curve: str
    x: int
    checkpointing: bool
    micro_batches: list[list[int]]


def points() -> list[Point]:
    found = []
    for checkpointing in (False, True):
        for tokens in (512, 1024, 2048, 4096):
            found.append(Point("tokens of a micro-batch", tokens, checkpointing, [[ROW] * (tokens // ROW)] * 2))
        for rows in (16, 32, 64):
            batches = [[ROW] * (FIXED // ROW)] * (rows * ROW // FIXED)
            found.append(Point("rows of a step", rows, checkpointing, batches))
        for longest in (256, 1024, 2048):
            found.append(Point("tokens of the longest row", longest, checkpointing,
                               [[longest] * (FIXED // longest)] * 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="26m", choices=tuple(PRESETS))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    arguments = parser.parse_args()
    if not timed_dtypes([getattr(torch, arguments.dtype)], torch.device(arguments.device)):
        return
    print(f"{'varied':<27}{'':>6}{'checkpointing':>15}{'measured':>11}{'predicted':>11}   MiB")
    rows = []
    for point in points():
        rows.append(row_of(point, arguments))
        row = rows[-1]
        print(f"{point.curve:<27}{point.x:>6}{'yes' if point.checkpointing else 'no':>15}{row['measured']:>11,.0f}"
              f"{row['predicted']:>11,.0f}{row['predicted'] / row['measured'] - 1:>+7.0%}", flush=True)
    if arguments.json:
        record = {"command": " ".join(["python", "benchmarks/memory_curve.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "unit": "MiB", "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(rows, f"{arguments.preset}, {arguments.dtype}, {arguments.device}", arguments.plot)


def row_of(point: Point, arguments: argparse.Namespace) -> dict:
    probe = Probe(point.micro_batches, preset=arguments.preset, dtype=arguments.dtype, device=arguments.device,
                  gradient_checkpointing=point.checkpointing, steps=2)
    return {"curve": point.curve, "x": point.x, "checkpointing": point.checkpointing,
            "measured": measure(probe)["peak"] / MIB, "predicted": sum(peak(probe.config, probe.plan).values()) / MIB}


def draw(rows: list[dict], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = list(dict.fromkeys(row["curve"] for row in rows))
    figure, panels = pyplot.subplots(1, len(curves), figsize=(12, 3.8), sharey=True, layout="constrained")
    for panel, curve in zip(panels, curves, strict=True):
        for checkpointing, colour in ((False, "#1f5fa8"), (True, "#c0561b")):
            own = [row for row in rows if row["curve"] == curve and row["checkpointing"] == checkpointing]
            x = [row["x"] for row in own]
            panel.plot(x, [row["measured"] for row in own], "o-", color=colour,
                       label="gradient checkpointing" if checkpointing else "measured")
            panel.plot(x, [row["predicted"] for row in own], "--", color=colour, alpha=0.6,
                       label="its prediction" if checkpointing else "predicted")
        panel.set_xscale("log", base=2)
        panel.set_xticks(x, [f"{value:,}" for value in x])
        panel.minorticks_off()
        panel.set_xlabel(curve + ("" if curve.endswith("micro-batch") else f" ({FIXED:,} a micro-batch)"))
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("peak memory (MiB)")
    panels[0].legend(frameon=False)
    figure.suptitle(f"Memory grows with --micro_batch_tokens alone ({title})")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
