"""Renders the inspector's report as one self-contained HTML page."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from minimind_sft.inspection import figures
from minimind_sft.inspection.report import Part, Report
from minimind_sft.inspection.shown import ShownRow, Token
from minimind_sft.inspection.tally import KINDS
from minimind_sft.report.formats import percent
from minimind_sft.report.page import Badge, Bar, Column, Finding, Table, Weight, render, write_page

MAX_LINES = 200
"""Lines listed for one finding; thousands would be too many for a browser."""


def write_report_page(path: Path, report: Report, rows: Sequence[ShownRow]) -> None:
    write_page(path, render_page(report, rows))


def render_page(report: Report, rows: Sequence[ShownRow]) -> str:
    parts = [*report.parts, *report.totals]
    return render(
        "inspection.html.jinja", package="minimind_sft.inspection", scripts=(), report=report, rows=rows,
        names=list(dict.fromkeys(part.name for part in report.parts)), files=file_table(parts),
        plan_line=figures.plan_line(report.plan), stretches=stretches,
        token_count=lambda tokens: sum(len(token.ids) for token in tokens), parts_of_data=parts,
        facts=lambda part: figures.figures(part.tally), findings=shown_findings,
        lengths_line=lambda part: figures.lengths_line(part.tally.lengths, report.max_seq_len),
        bars=lambda part: length_bars(part, report.max_seq_len))


def file_table(parts: Sequence[Part]) -> Table:
    """Returns the figures of the files that can be compared, and their verdicts."""
    names = ("rows", "tokens", "supervised", "answers", "with end of turn")
    columns = [Column("file"), Column("used for"), *(Column(name, True) for name in names), Column("verdict")]
    return Table(columns, [[
        part.name, part.role, f"{part.tally.counts.rows:,}", f"{part.tally.counts.tokens:,}",
        percent(part.tally.supervised_share), f"{part.tally.turns:,}", percent(part.tally.ended_share),
        Badge(state(part), part.verdict)] for part in parts])


def state(part: Part) -> Weight:
    """Returns the weight of a part's verdict."""
    return "wrong" if part.wrong else "warning" if part.odd else "fine"


def shown_findings(part: Part) -> list[Finding]:
    """Returns what was found in a part, with the lines that have it."""
    found = []
    for kind, finding, words in figures.findings(part.tally):
        lines = [detail if kind == "bad" else f"line {position}{f': {detail}' if detail else ''}"
                 for position, detail in finding.places[:MAX_LINES]]
        weight = KINDS[kind].weight
        found.append(Finding(weight, words, lines, finding.count - len(lines) if lines else 0, weight == "wrong"))
    return found


def stretches(tokens: Sequence[Token]) -> list[tuple[bool, list[Token]]]:
    """Groups consecutive tokens by whether they are supervised."""
    return [(supervised, list(group)) for supervised, group in groupby(tokens, key=lambda token: token.supervised)]


def length_bars(part: Part, max_seq_len: int) -> list[Bar]:
    """Returns the bars of a part's histogram of lengths; longer sequences than max_seq_len stand out."""
    bars = figures.bars(part.tally.lengths, max_seq_len)
    tallest = max((bar.sequences for bar in bars), default=1)
    return [Bar(f"over {max_seq_len:,}" if bar.is_over else f"{bar.first:,}–{bar.last:,}",
                100 * bar.sequences / tallest, f"{bar.sequences:,}",
                f"{bar.sequences:,} sequences of {bar.first:,} to {bar.last:,} tokens", bar.is_over) for bar in bars]
