"""Renders the page that shows runs while they train: an overview of all runs, and one of them in full."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from minimind_sft.report.comparison_page import overlays
from minimind_sft.report.following import FollowedRun, FollowedRuns
from minimind_sft.report.formats import duration, number
from minimind_sft.report.page import CHART_SCRIPT, Badge, page_policy, render
from minimind_sft.report.run_files import Run
from minimind_sft.report.run_names import run_names
from minimind_sft.report.run_page import run_values

SCRIPTS = (CHART_SCRIPT, "live.js")
MAX_OVERLAID = 8
"""Runs whose curves are drawn over each other: those that wrote last."""

ENDS = {"finished": Badge("fine", "finished"), "stopped early": Badge("fine", "stopped early"),
        "interrupted": Badge("warning", "interrupted"), "failed": Badge("wrong", "failed")}
ACTIVITIES = ("data_seconds", "step_seconds", "eval_seconds", "save_seconds")


class RunLine(NamedTuple):
    """A run in the overview.

    Attributes:
        link: the query that shows it in full.
        written: when its file last grew (seconds since the epoch); None without a file.
        done: the share of its steps, in percent.
    """

    name: str
    link: str
    state: Badge
    steps: str
    done: float | None
    loss: str
    validation: str
    speed: str
    left: str
    written: float | None
    problem: str


class LivePage:
    """Renders the page and its content, for `LiveServer`."""

    def __init__(self, followed: FollowedRuns):
        self._followed = followed
        self._made: dict[tuple[str, str], tuple[list[tuple[Path, int]], str]] = {}
        """The page of each address and chosen run, with the versions of the runs that it shows."""

    def __call__(self, path: str, query: Mapping[str, str]) -> str:
        """Renders the whole page for "/" and the part that changes for "/content".

        Args:
            query: "run" is the name of the run to show in full.
        """
        runs = self._followed.update()
        versions = [(one.path, one.version) for one in runs]
        names = run_names([one.path for one in runs])
        chosen = query.get("run", "") if len(names) != 1 else names[0]
        known, page = self._made.get((path, chosen), ([], ""))
        if not page or known != versions:
            page = _rendered(path, dict(zip(names, runs, strict=True)), chosen)
            self._made = {key: made for key, made in self._made.items()
                          if made[0] == versions and key[1] in ("", *names)}
            self._made[path, chosen] = versions, page
        return page


def _rendered(path: str, runs: Mapping[str, FollowedRun], chosen: str) -> str:
    lines = [run_line(name, one) for name, one in runs.items()]
    values: dict[str, Any] = {"lines": lines, "chosen": chosen, "tab": _tab_title(lines, chosen), "charts": [],
                              "run": None}
    if chosen in runs:
        values |= run_values(runs[chosen].run)
    elif not chosen:
        shown = sorted(list(runs)[:MAX_OVERLAID])  # by name, so that a run keeps its colour
        values["charts"] = overlays(shown, [runs[name].run for name in shown])
    if path == "/content":
        return render("live_content.html.jinja", **values)
    return render("live.html.jinja", scripts=SCRIPTS, connects=True, **values)


def live_policy() -> str:
    """Returns the content security policy of the page, as a header: that of the page, and no frames around it."""
    return f"{page_policy(SCRIPTS, connects=True)}; frame-ancestors 'none'"


def run_line(name: str, followed: FollowedRun) -> RunLine:
    """Returns what the overview says about a run."""
    run = followed.run
    state = ENDS[run.end.how] if run.end else Badge("hint", "training" if run.steps or run.starts else "waiting")
    of_all = f" of {run.total_steps:,}" if run.total_steps else ""
    left = None if run.end else seconds_left(run)
    return RunLine(
        name, f"?{urlencode({'run': name})}", state, f"{run.last_step:,}{of_all}",
        min(100 * run.last_step / run.total_steps, 100) if run.total_steps else None, _last(run, "loss"),
        _last(run, "eval_loss"), _last(run, "supervised_tokens_per_second", "{:,.0f}"),
        "" if left is None else duration(left), followed.written, followed.problem)


def seconds_left(run: Run) -> float | None:
    """Returns the time that a run will still take, from the time of its steps since it was last started."""
    since = run.starts[-1]["step"] if run.starts else 0
    timed = [line for line in run.steps if line["step"] > since and line.get("step_seconds") is not None]
    if len(timed) < 2 or not run.total_steps:
        return None
    first, last = timed[0], timed[-1]
    seconds = sum((last.get(name) or 0) - (first.get(name) or 0) for name in ACTIVITIES)
    return max(seconds, 0) / (last["step"] - first["step"]) * max(run.total_steps - last["step"], 0)


def _last(run: Run, name: str, form: str = "") -> str:
    points = run.curve(name)
    if not points:
        return "-"
    return form.format(points[-1][1]) if form else number(points[-1][1])


def _tab_title(lines: list[RunLine], chosen: str) -> str:
    """Returns the title of the browser's tab: how far the run is that is shown, or the one that wrote last."""
    shown = [line for line in lines if line.name == chosen] or lines
    return f"step {shown[0].steps}: {shown[0].name}" if shown else "no run yet"
