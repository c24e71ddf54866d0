"""Writes the comparison of runs as one HTML page, and as tables for the terminal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minimind_sft.report.comparison import Comparison, Row
from minimind_sft.report.curves import MIN_POINTS_TO_SMOOTH, Chart, Drawing, Point, Series, draw, needs_log, smoothed
from minimind_sft.report.page import Badge, Column, Table, render, write_page
from minimind_sft.report.run_files import Run
from minimind_sft.terminal import aligned, columns

COLOURS = 8
"""Colours of the page's palette; after them, lines are dashed."""

PERCENT = ("token_accuracy", "exact_match")


def write_comparison(path: Path, compared: Comparison) -> None:
    """Writes the page.

    Raises:
        UserError: if it cannot be written.
    """
    write_page(path, render_comparison(compared))


def render_comparison(compared: Comparison) -> str:
    """Returns the comparison as HTML."""
    commands = [(name, run.about.get("command")) for name, run in zip(compared.names, compared.runs, strict=True)]
    return render("comparison.html.jinja", compared=compared, charts=overlays(compared.names, compared.runs),
                  scores=table("", compared.names, compared.scores),
                  by_part=[(part.title, table(part.heading, compared.names, part.rows)) for part in compared.parts],
                  differences=table("setting", compared.names, compared.differences, are_numbers=False),
                  commands=[(name, command) for name, command in commands if command])


def overlays(names: Sequence[str], runs: Sequence[Run]) -> list[Drawing]:
    """Returns the curves of the runs over each other, one chart for each measure."""
    losses, norms = ([point for field in fields for run in runs for point in run.curve(field)]
                     for fields in (("loss", "eval_loss"), ("grad_norm",)))
    log = needs_log(losses)
    wanted = [
        (Chart("Training loss", "nats per supervised token", (), log=log, tall=True), "loss"),
        (Chart("Validation loss", "nats per supervised token", (), log=log, tall=True), "eval_loss"),
        (Chart("Exact match", "% of answers", (), from_zero=True), "exact_match"),
        (Chart("Token accuracy", "% of tokens", ()), "token_accuracy"),
        (Chart("Learning rate", "", (), from_zero=True), "learning_rate"),
        (Chart("Gradient norm", "before clipping", (), log=needs_log(norms)), "grad_norm"),
        (Chart("Speed", "supervised tokens per second", (), from_zero=True), "supervised_tokens_per_second"),
    ]
    steps = (0, max([1, *(run.last_step for run in runs)]))
    charts = (replace(chart, x_range=steps, series=[_series(name, number, run, field) for number, (name, run)
                                                    in enumerate(zip(names, runs, strict=True))])
              for chart, field in wanted)
    return [drawing for chart in charts if (drawing := draw(chart))]


def as_text(compared: Comparison, width: int) -> str:
    """Returns the comparison as text for a terminal of `width` columns, the verdict last.

    Runs whose names leave no room for the tables are numbered.
    """
    tables = [("", compared.scores), *((part.title, part.rows) for part in compared.parts)]
    fits = all(_fits(_lines(compared.names, rows), width) for _, rows in tables)
    names = compared.names if fits else [str(number) for number in range(1, len(compared.names) + 1)]
    blocks = [] if fits else [aligned(list(zip(names, compared.names, strict=True)))]
    blocks += [[*([title] if title else []), *_lines(names, rows)] for title, rows in tables if rows]
    blocks.append(_difference_lines(names, compared.differences, width))
    blocks += [[f"{note.weight}: {note.text}" for note in compared.notes]] if compared.notes else []
    blocks.append([compared.verdict.sentence])
    return "\n\n".join("\n".join(block) for block in blocks)


def _difference_lines(names: Sequence[str], rows: Sequence[Row], width: int) -> list[str]:
    """Returns what differs as a table, or as a list if long values leave no room for one."""
    if not rows:
        return ["What differs: nothing that the files record"]
    lines = _lines(names, rows)
    if not _fits(lines, width):
        lines = [line for row in rows for line in (row.name, *aligned([("", name, value) for name, value
                                                                       in zip(names, row.values, strict=True)]))]
    return ["What differs", *lines]


def _fits(lines: Sequence[str], width: int) -> bool:
    return all(columns(line) <= width for line in lines)


def table(heading: str, names: Sequence[str], rows: Sequence[Row], are_numbers: bool = True) -> Table | None:
    """Returns rows as a table of the page, with a column for each run."""
    if not rows:
        return None
    return Table([Column(heading), *(Column(name, are_numbers) for name in names)],
                 [[row.name, *(Badge("fine", value) if number in row.best else value
                               for number, value in enumerate(row.values))] for row in rows])


def _lines(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    return aligned([["", *names], *([row.name, *row.values] for row in rows)], range(1, len(names) + 1))


def _series(name: str, number: int, run: Run, field: str) -> Series:
    """Returns the curve of one run, in the run's colour. Values of single steps are smoothed if there are many."""
    points: list[Point] = [(x, 100 * y if field in PERCENT else y) for x, y in run.curve(field)]
    if field in ("loss", "grad_norm") and len(points) >= MIN_POINTS_TO_SMOOTH:
        points = smoothed(points)
    is_measured = field in (*PERCENT, "eval_loss")
    look = "dots" if is_measured else "dashed" if number >= COLOURS else "line"
    return Series(name, points, number % COLOURS, look)  # type: ignore[arg-type]
