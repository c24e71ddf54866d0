"""Writes the report of a run: one HTML page, made from its metrics file and from what the inspector found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.report.answers import answer_pairs, first_shown, summary_of
from minimind_sft.report.curves import Chart, Drawing, Mark, Point, Series, draw, needs_log, with_mean
from minimind_sft.report.details import changed_settings, data_table, machine, pairs_of, subtitle
from minimind_sft.report.page import Finding, Note, render, write_page
from minimind_sft.report.run_files import Run, read_run
from minimind_sft.report.scores import figures, forgetting, score_table
from minimind_sft.report.verdict import Outcome, judge, outcome

BLUE, ORANGE, GREEN, PURPLE, RED = range(5)
"""Colours of the page's palette."""


class Inspected(NamedTuple):
    """The inspector's findings in one file of the run; `facts` are (name, value) of what is no finding."""

    name: str
    role: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[Finding]


def write_run_page(path: Path, metrics: Path, inspected: Sequence[Inspected] = (), looked_at: str = "") -> None:
    """Writes the report of the run that wrote a metrics file.

    Args:
        looked_at: which rows the inspector has looked at, in words.

    Raises:
        UserError: if the metrics file is not as expected, or the page cannot be written.
    """
    write_page(path, render_run_page(read_run(metrics), inspected, looked_at))


def render_run_page(run: Run, inspected: Sequence[Inspected] = (), looked_at: str = "") -> str:
    """Returns the report of a run as HTML."""
    return render("run.html.jinja", **run_values(run, inspected, looked_at))


def run_values(run: Run, inspected: Sequence[Inspected] = (), looked_at: str = "") -> dict[str, Any]:
    """Returns what `run_body.html.jinja` shows."""
    found = outcome(run)
    answers = answer_pairs(found)
    return {
        "run": run, "verdict": judge(run), "subtitle": subtitle(run), "figures": figures(run, found),
        "warnings": [Note("warning", warning.text[:1].upper() + warning.text[1:]) for warning in run.warnings],
        "charts": charts(run, found), "answers": first_shown(answers), "answers_line": summary_of(answers),
        "by_kind": score_table("kind", "by_kind", found), "by_source": score_table("file", "by_source", found),
        "forgetting": forgetting(found), "data": data_table(run), "inspected": inspected, "looked_at": looked_at,
        "changed": changed_settings(run), "settings": pairs_of(run.settings), "model": pairs_of(run.about.get("model")),
        "machine": machine(run), "versions": pairs_of(run.about.get("versions"))}


def charts(run: Run, found: Outcome) -> list[Drawing]:
    """Returns the curves of a run, the loss first; all of them over the same steps."""
    marks = []
    if found.kept and found.kept is not found.last:
        marks.append(Mark(found.kept["step"], "kept weights"))
    loss = run.curve("loss")
    grad_norm = run.curve("grad_norm")
    speed = [Series("supervised", run.curve("supervised_tokens_per_second"), RED)]
    if run.curve("tokens_per_second") != speed[0].points:  # while pretraining, all tokens are supervised
        speed.append(Series("all", run.curve("tokens_per_second"), ORANGE))
    wanted = [
        Chart("Loss", "nats per supervised token", [*with_mean("training", loss, BLUE), Series(
            "validation", run.curve("eval_loss"), ORANGE, "dots")], log=needs_log([*loss, *run.curve("eval_loss")]),
            tall=True, marks=marks),
        Chart("Accuracy", "%, of the evaluation data", [
            Series("answers that match exactly", _percent(run.curve("exact_match")), GREEN, "dots"),
            Series("tokens", _percent(run.curve("token_accuracy")), ORANGE, "dots")], from_zero=True),
        Chart("Learning rate", "", [Series("learning rate", run.curve("learning_rate"), GREEN)], from_zero=True),
        Chart("Gradient norm", "before clipping", with_mean("gradient norm", grad_norm, PURPLE),
              log=needs_log(grad_norm)),
        Chart("Speed", "tokens per second", speed, from_zero=True),
    ]
    steps = (0, max(run.last_step, 1))
    return [drawing for chart in wanted if (drawing := draw(replace(chart, x_range=steps)))]


def _percent(points: list[tuple[int, float]]) -> list[Point]:
    return [(x, 100 * y) for x, y in points]
