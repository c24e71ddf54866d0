"""Draws the curves of one or more runs from their metrics files: losses, learning rate, gradient norm and speed.

    python scripts/plot_metrics.py out/full_sft_256_metrics.jsonl --out loss.png
    python scripts/plot_metrics.py out/*_metrics.jsonl --out runs.svg --title "Three learning rates"

Needs matplotlib (pip install matplotlib).
"""

from pathlib import Path

from minimind_sft.errors import UserError, run_program
from minimind_sft.report.plots import check_plots, draw, panels_of
from minimind_sft.report.run_files import Run, read_run
from minimind_sft.report.run_names import run_names
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import PlotSettings
from minimind_sft.terminal import say
from minimind_sft.writing import check_replaceable_kind, check_writable


def main() -> None:
    settings = parse_flags(PlotSettings, description=__doc__)
    out = Path(settings.out)
    check_picture(out)
    check_plots()
    draw(read([Path(name) for name in settings.metrics]), settings.title, out)
    say(f"wrote {out}")


def check_picture(path: Path) -> None:
    """Checks the picture's place before anything is read.

    Raises:
        UserError: if no picture can be written there.
    """
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder, expected a file or nothing")
    check_replaceable_kind(path)
    check_writable(path.parent, "--out")


def read(paths: list[Path]) -> dict[str, Run]:
    """Reads metrics files; returns the runs by the names that tell them apart.

    Raises:
        UserError: naming the file that cannot be read, or that has nothing to draw.
    """
    runs = dict(zip(run_names(paths), map(read_run, paths), strict=True))
    for run in runs.values():
        if not panels_of({"": run}):
            raise UserError(f"{run.path}: has no loss to draw; a run logs one every --log_interval steps")
    return runs


if __name__ == "__main__":
    run_program(main)
