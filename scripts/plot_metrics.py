"""Draws the loss curves of one or more runs from their metrics files.

    python scripts/plot_metrics.py out/full_sft_256_metrics.jsonl --out loss.png

Needs matplotlib (pip install -e '.[dev]').
"""

import json
import math
from pathlib import Path
from typing import Any

from minimind_sft.data.reading import parse_json
from minimind_sft.errors import UserError, run_program
from minimind_sft.files import check_writable, write_atomically
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import PlotSettings
from minimind_sft.terminal import say

CURVES = ("loss", "eval_loss")
SMOOTHING = 0.95
"""Weight of the past in the running mean, which is drawn over the losses of single steps."""


def main() -> None:
    settings = parse_flags(PlotSettings, description=__doc__)
    out = Path(settings.out)
    check_picture(out)
    draw([(path, read_curves(path)) for path in map(Path, settings.metrics)], settings.title, out)
    say(f"wrote {out}")


def check_picture(path: Path) -> None:
    """Checks the picture's place before anything is read.

    Raises:
        UserError: if no picture can be written there.
    """
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder, expected a file or nothing")
    check_writable(path.parent, "--out")


def read_curves(path: Path) -> list[dict]:
    """Reads the lines of a metrics file.

    Raises:
        UserError: naming the file and line that cannot be read, or the file if it has no loss.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a metrics file, <save_dir>/<name>_metrics.jsonl (not UTF-8)") from error
    parsed = [parse_json(line, f"{path}:{number}", "a line of metrics") for number, line in enumerate(lines, start=1)]
    for number, line in enumerate(parsed, start=1):
        if not isinstance(line, dict) or not is_number(line.get("step")):
            raise UserError(f"{path}:{number}: expected a line of metrics with a step, as in "
                            '{"step": 10, "loss": 2.5}')
        for name in CURVES:
            if line.get(name) is not None and not is_number(line[name]):
                raise UserError(f"{path}:{number}: {name}: expected a number, found {json.dumps(line[name])[:40]}")
    if not any(curve(parsed, name)[0] for name in CURVES):
        raise UserError(f"{path}: has no loss to draw; a run logs one every --log_interval steps")
    return parsed


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw(runs: list[tuple[Path, list[dict]]], title: str, out: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install -e '.[dev]'") from error

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for index, (path, lines) in enumerate(runs):
        name = path.name.removesuffix("_metrics.jsonl")
        steps, losses = curve(lines, "loss")
        axes.plot(steps, losses, color=f"C{index}", alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(losses), color=f"C{index}", label=f"{name}: training")
        steps, losses = curve(lines, "eval_loss")
        if steps:
            axes.plot(steps, losses, "o--", color=f"C{index}", markersize=4, linewidth=1, markerfacecolor="white",
                      label=f"{name}: validation {losses[0]:.2f} -> {min(losses):.2f} "
                            f"(perplexity {perplexity(losses[0]):,.1f} -> {perplexity(min(losses)):,.2f})")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(out, lambda to: figure.savefig(to, dpi=120, format=out.suffix[1:].lower()))


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def curve(lines: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of the lines with a number under `name`; a loss that was not finite is null."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def running_mean(values: list[float]) -> list[float]:
    """Returns the exponential running mean, corrected for its start at zero."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        means.append(total / weight)
    return means


if __name__ == "__main__":
    run_program(main)
