"""Draws the curves of runs as a picture, with matplotlib."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.errors import UserError
from minimind_sft.report.curves import smoothed
from minimind_sft.report.run_files import Run
from minimind_sft.terminal import harmless
from minimind_sft.writing import write_atomically

Points = Sequence[tuple[int, float]]
"""Steps and the values at them."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
"""Colours that colour-blind people can tell apart (Okabe and Ito 2008)."""

DASHES = ("solid", (0, (5, 2)), (0, (1, 1)))
"""Line styles; the next one is taken when all colours are used."""

FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "PingFang HK", "Microsoft YaHei",
         "WenQuanYi Micro Hei")
"""The first of these that has a character draws it. Of Noto's collection, matplotlib sees the first member: JP."""

DOTS_PER_INCH = 120
WIDE, NARROW = 4.0, 2.4
"""Heights in inches of a row of large panels and of a row of small ones."""


class Panel(NamedTuple):
    """A field of the metrics file and how it is drawn."""

    field: str
    title: str
    is_large: bool = False


TRAINING = Panel("loss", "training loss (nats per supervised token)", True)
VALIDATION = Panel("eval_loss", "validation loss (nats per supervised token)", True)
BOTH_LOSSES = Panel("loss", "loss (nats per supervised token)", True)
RATE = Panel("learning_rate", "learning rate")
GRADIENT = Panel("grad_norm", "gradient norm")
SPEED = Panel("tokens_per_second", "speed (tokens per second)")
SUPERVISED_SPEED = Panel("supervised_tokens_per_second", "speed (supervised tokens per second)")


def check_plots() -> None:
    """Checks that pictures can be drawn.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install matplotlib") from error


def draw(runs: Mapping[str, Run], title: str, out: Path) -> None:
    """Draws the curves of runs over each other and writes them in the format that the name of `out` ends in.

    Equal curves give equal files.

    Args:
        runs: the runs by the names that the picture gives them.

    Raises:
        UserError: if matplotlib is not installed, or `out` cannot be written.
    """
    check_plots()
    from matplotlib import rc_context

    look: Any = {"font.family": _installed(FONTS), "svg.hashsalt": "minimind-sft", "svg.fonttype": "path"}
    with rc_context(look), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # it is drawn as a box
        figure = _figure(runs, title)
        kind = out.suffix[1:].lower()
        undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        write_atomically(out, lambda to: figure.savefig(to, dpi=DOTS_PER_INCH, format=kind,
                                                        metadata=undated.get(kind)))


def panels_of(runs: Mapping[str, Run]) -> list[Panel]:
    """Lists the panels that have something to show. A single run has both losses in one panel."""
    losses = [BOTH_LOSSES] if len(runs) == 1 else [TRAINING, VALIDATION]
    speed = SPEED if any(run.curve(SPEED.field) for run in runs.values()) else SUPERVISED_SPEED
    return [panel for panel in (*losses, RATE, GRADIENT, speed) if any(_fields(panel, run) for run in runs.values())]


def _fields(panel: Panel, run: Run) -> list[str]:
    """Returns the fields of the panel for which the run has values."""
    fields = (TRAINING.field, VALIDATION.field) if panel is BOTH_LOSSES else (panel.field,)
    return [field for field in fields if run.curve(field)]


def described_validation(points: Points) -> str:
    """Describes how a validation loss went: its first and its lowest value, and their perplexities."""
    first, (step, lowest) = points[0][1], min(points, key=lambda point: point[1])
    return (f"{first:.3f} → {lowest:.3f} at step {step} "
            f"(perplexity {_perplexity(first):,.4g} → {_perplexity(lowest):,.4g})")


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _figure(runs: Mapping[str, Run], title: str) -> Any:
    from matplotlib.figure import Figure

    panels = panels_of(runs)
    rows = [row for row in ([panel for panel in panels if panel.is_large],
                            [panel for panel in panels if not panel.is_large]) if row]
    heights = [WIDE if row[0].is_large else NARROW for row in rows]
    figure = Figure(figsize=(10, sum(heights) + 0.6), layout="constrained")
    for part, row in zip(figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0], rows,
                         strict=True):
        for axes, panel in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            _draw_panel(axes, panel, runs)
    if title:
        figure.suptitle(_plain(title))
    if len(runs) > 1:
        handles, labels = _legend(runs)
        figure.legend(handles, labels, loc="outside lower center", fontsize="small", frameon=False)
    return figure


def _draw_panel(axes: Any, panel: Panel, runs: Mapping[str, Run]) -> None:
    for number, run in enumerate(runs.values()):
        _draw_points(axes, panel, run.curve(panel.field), _style(number))
        validation = run.curve(VALIDATION.field)
        if panel is BOTH_LOSSES and validation:
            _draw_points(axes, VALIDATION, validation, {"color": COLORS[1], "linestyle": "solid"},
                         f"validation {described_validation(validation)}")
            axes.legend(fontsize="small")
    axes.set_title(panel.title, fontsize="medium", loc="left")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if not panel.is_large:
        highest = max(value for run in runs.values() for _, value in run.curve(panel.field))
        axes.set_ylim(0, 1.1 * highest or 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _draw_points(axes: Any, panel: Panel, points: Points, style: dict[str, Any], label: str = "training") -> None:
    """Draws one curve. A training loss is drawn faintly, and its running mean over it."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    if panel.field == VALIDATION.field:
        axes.plot(steps, values, marker="o", markersize=4, markerfacecolor="white", linewidth=1.2, label=label, **style)
    elif panel.field == TRAINING.field:
        axes.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.8)
        axes.plot(steps, [value for _, value in smoothed(points)], label=label, linewidth=1.6, **style)
    else:
        axes.plot(steps, values, linewidth=1.1, marker="o" if len(points) == 1 else "", markersize=4, **style)


def _legend(runs: Mapping[str, Run]) -> tuple[list[Any], list[str]]:
    """Returns a line for each run, and its name with how its validation loss went."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=1.8, **_style(number)) for number in range(len(runs))]
    labels = []
    for name, run in runs.items():
        validation = run.curve(VALIDATION.field)
        labels.append(_plain(name) + (f": validation {described_validation(validation)}" if validation else ""))
    return handles, labels


def _style(number: int) -> dict[str, Any]:
    """Returns colour and line style of the run with this number."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number // len(COLORS) % len(DASHES)]}


def _plain(text: str) -> str:
    """Returns text that matplotlib draws as it is: `$` would begin a formula, and `_` hides a label."""
    return re.sub("^_", " _", harmless(text).replace("$", r"\$"))


def _installed(fonts: Sequence[str]) -> list[str]:
    from matplotlib import font_manager

    known = set(font_manager.get_font_names())
    return [font for font in fonts if font in known] or ["sans-serif"]
