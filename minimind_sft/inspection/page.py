"""Renders the report as one self-contained HTML file without scripts."""

from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jinja2

from minimind_sft.files import write_atomically
from minimind_sft.inspection import figures
from minimind_sft.inspection.report import Part, Report
from minimind_sft.inspection.shown import ShownRow, Token
from minimind_sft.inspection.tally import KINDS

PLOT_WIDTH, PLOT_HEIGHT = 1000, 150
MAX_LINES = 200
"""Lines listed for one finding; thousands would be too many for a browser."""


class Column(NamedTuple):
    """A bar of the histogram, in the picture's own units; `label` is below it, `title` appears on hover."""

    x: float
    y: float
    width: float
    height: float
    label: str
    title: str
    sequences: str
    is_over: bool


def write_page(path: Path, report: Report, rows: Sequence[ShownRow]) -> None:
    text = render_page(report, rows)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def render_page(report: Report, rows: Sequence[ShownRow]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    source = (files("minimind_sft.inspection") / "page.html.jinja").read_text(encoding="utf-8")
    parts = [*report.parts, *report.totals]
    return environment.from_string(source).render(
        report=report, rows=rows, plan_line=figures.plan_line(report.plan), percent=figures.percent,
        stretches=stretches, token_count=lambda tokens: sum(len(token.ids) for token in tokens), parts=parts,
        findings=lambda part: figures.findings(part.tally), figures=lambda part: figures.figures(part.tally),
        lengths_line=lambda part: figures.lengths_line(part.tally.lengths, report.max_seq_len),
        columns=lambda part: length_columns(part, report.max_seq_len), state=state, kinds=KINDS, most=MAX_LINES,
        plot_width=PLOT_WIDTH, plot_height=PLOT_HEIGHT)


def state(part: Part) -> str:
    """Returns the CSS class of a part's verdict."""
    return "wrong" if part.wrong else "warning" if part.odd else "fine"


def stretches(tokens: Sequence[Token]) -> list[tuple[bool, list[Token]]]:
    """Groups consecutive tokens by whether they are supervised."""
    return [(supervised, list(group)) for supervised, group in groupby(tokens, key=lambda token: token.supervised)]


def length_columns(part: Part, max_seq_len: int) -> list[Column]:
    """Returns the bars of a part's histogram of lengths."""
    bars = figures.bars(part.tally.lengths, max_seq_len)
    tallest = max((bar.sequences for bar in bars), default=1)
    slot = PLOT_WIDTH / max(len(bars), 1)
    found = []
    for number, bar in enumerate(bars):
        height = max(PLOT_HEIGHT * bar.sequences / tallest, 2 if bar.sequences else 0)
        found.append(Column(number * slot + 3, PLOT_HEIGHT - height, slot - 6, height,
                            f"over {max_seq_len:,}" if bar.is_over else f"{bar.first:,}–{bar.last:,}",
                            f"{bar.sequences:,} sequences of {bar.first:,} to {bar.last:,} tokens",
                            f"{bar.sequences:,}", bar.is_over))
    return found
