"""Formats the report for a terminal, with or without colours."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from minimind_sft.inspection.figures import LINES_NAMED, bars, figures, findings, lengths_line, plan_line
from minimind_sft.inspection.report import Part, Report
from minimind_sft.inspection.shown import ShownRow, Token, printable
from minimind_sft.inspection.tally import KINDS, Position, Tally
from minimind_sft.terminal import counted, width_of

BAR_WIDTH = 40
STYLES = {"wrong": "1;31", "warning": "33", "hint": "36", "fine": "32", "title": "1", "faint": "2",
          "given": "2", "given control": "35", "supervised": "32", "supervised control": "30;42"}
"""ANSI codes."""


class Painter:
    """Colours text, or returns it unchanged."""

    def __init__(self, in_colour: bool):
        self.in_colour = in_colour

    def __call__(self, style: str, text: str) -> str:
        if not self.in_colour:
            return text
        # Each line by itself, so that a pager that starts in the middle shows the same colours.
        return "\n".join(f"\x1b[{STYLES[style]}m{line}\x1b[0m" if line else "" for line in text.split("\n"))


def as_text(report: Report, rows: Sequence[ShownRow], max_bad: int, in_colour: bool) -> str:
    """Returns the report as text.

    Args:
        rows: rows to show token by token.
        max_bad: number of bad rows to list, 0: all.
    """
    paint = Painter(in_colour)
    lines = [*_rows(rows, paint)]
    for part in report.parts:
        lines += [*_part(part, report.max_seq_len, max_bad, paint), ""]
    for part in report.totals:
        lines += [*_part(part, report.max_seq_len, max_bad, paint), ""]
    lines += [f"{'template':<12}{printable(note)}" for note in report.notes]
    lines.append(f"{'steps':<12}{plan_line(report.plan)}")
    lines += [f"{'verdict':<12}{printable(part.name)} ({part.role}): {_verdict(part, paint)}" for part in report.parts]
    lines.append(f"{'in all':<12}" + paint("fine" if report.is_fine else "wrong", printable(report.verdict)))
    *fixing, training = report.commands or [""]
    lines += [f"{'to fix':<12}{printable(command)}" for command in fixing]
    lines += [f"{'to train':<12}{printable(training)}"] if training else []
    return "\n".join(lines)


def _rows(rows: Sequence[ShownRow], paint: Painter) -> Iterator[str]:
    if not rows:
        return
    if paint.in_colour:
        yield " ".join([paint("supervised", "supervised"), paint("supervised control", "supervised control token"),
                        paint("given", "not supervised"), paint("given control", "control token")])
    else:
        yield "⟦supervised⟧ not supervised ‹control token›"
    yield ""
    for row in rows:
        for number, tokens in enumerate(row.sequences, 1):
            sequence = f", sequence {number} of {len(row.sequences)}" if len(row.sequences) > 1 else ""
            count = sum(len(token.ids) for token in tokens)
            learned = sum(len(token.ids) for token in tokens if token.supervised)
            yield paint("title", f"{printable(row.place)}{sequence}: {counted(count, 'token')}, {learned:,} supervised")
            yield _painted(tokens, paint)
            yield ""
        if row.left_out:
            yield f"... and {counted(row.left_out, 'more token')}"
            yield ""


def _painted(tokens: Sequence[Token], paint: Painter) -> str:
    pieces = []
    for supervised, stretch in groupby(tokens, key=lambda token: token.supervised):
        inner = []
        for control, group in groupby(stretch, key=lambda token: token.control):
            for text in ([token.text for token in group] if control else ["".join(token.text for token in group)]):
                if control and not paint.in_colour:
                    text = f"‹{text}›"
                inner.append(paint(("supervised" if supervised else "given") + (" control" if control else ""), text))
        text = "".join(inner)
        pieces.append(f"⟦{text}⟧" if supervised and not paint.in_colour else text)
    return "".join(pieces).rstrip("\n")


def _part(part: Part, max_seq_len: int, max_bad: int, paint: Painter) -> Iterator[str]:
    tally = part.tally
    yield paint("title", f"{printable(part.name)} ({part.role})")
    for name, value in figures(tally):
        yield f"{'  ' + name:<12}{printable(value)}"
    if tally.lengths:
        yield f"{'  lengths':<12}{lengths_line(tally.lengths, max_seq_len)}"
        yield from _histogram(tally, max_seq_len, paint)
    for kind, finding, words in findings(tally):
        weight = KINDS[kind].weight
        yield f"{'  ' + weight:<12}" + paint(weight, words) + ("" if kind == "bad" else _places(finding.places))
        if kind == "bad" and finding.places:
            shown = finding.places[:max_bad or None]
            yield from (f"    {printable(error)}" for _, error in shown)
            if finding.count > len(shown):
                yield f"    ... and {finding.count - len(shown):,} more (--most 0 prints all, --json has them)"
    yield f"{'  verdict':<12}{_verdict(part, paint)}"


def _places(places: list[tuple[Position, str]]) -> str:
    if not places:
        return ""
    named = ", ".join(f"{position} ({printable(detail)})" if detail else str(position)
                      for position, detail in places[:LINES_NAMED])
    return f": line{'s' if len(places) > 1 else ''} {named}{', ...' if len(places) > LINES_NAMED else ''}"


def _histogram(tally: Tally, max_seq_len: int, paint: Painter) -> Iterator[str]:
    found = bars(tally.lengths, max_seq_len)
    tallest = max(bar.sequences for bar in found)
    width = max(len(f"{bar.last:,}") for bar in found)
    beside = len("    ") + 2 * width + len(" - ") + len("  ") + len(f" {tallest:,}")
    longest = max(min(BAR_WIDTH, (width_of(sys.stdout) or sys.maxsize) - beside), 1)
    for bar in found:
        if bar.is_over:
            line = f"    ── max_seq_len {max_seq_len:,} "
            yield paint("warning", line.ljust(beside + longest - len(f" {tallest:,}"), "─"))
        drawn = ("█" * round(longest * bar.sequences / tallest)) or ("▏" if bar.sequences else "")
        line = f"    {bar.first:>{width},} - {bar.last:>{width},}  {drawn} {bar.sequences:,}"
        yield paint("warning", line) if bar.is_over else line


def _verdict(part: Part, paint: Painter) -> str:
    return paint("wrong" if part.wrong else "warning" if part.odd else "fine", part.verdict)
