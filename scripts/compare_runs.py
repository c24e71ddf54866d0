"""Compares runs by their metrics files: scores, curves, and the settings that differ.

    python scripts/compare_runs.py out/a_256_metrics.jsonl out/b_256_metrics.jsonl
    python scripts/compare_runs.py out/*_metrics.jsonl --html out/comparison.html

Prints tables; the page of --html has the curves over each other as well.
"""

import sys
from pathlib import Path

from minimind_sft.errors import UserError, run_program
from minimind_sft.paths import shown
from minimind_sft.report.comparison import compare
from minimind_sft.report.comparison_page import as_text, write_comparison
from minimind_sft.report.page import checked_page
from minimind_sft.report.run_files import read_run
from minimind_sft.report.run_names import run_names
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import CompareSettings
from minimind_sft.terminal import say, width_of


def main() -> None:
    settings = parse_flags(CompareSettings, description=__doc__)
    paths = [Path(name) for name in settings.metrics]
    if len(paths) < 2:
        raise UserError(f"{paths[0]}: expected at least two metrics files to compare, found one")
    page = checked_page(settings.html) if settings.html else None
    compared = compare(dict(zip(run_names(paths), map(read_run, paths), strict=True)))
    say(as_text(compared, width_of(sys.stdout) or sys.maxsize))
    if page:
        write_comparison(page, compared)
        say(f"\nwrote {shown(page)}")


if __name__ == "__main__":
    run_program(main)
