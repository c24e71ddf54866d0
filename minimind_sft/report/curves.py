"""Turns series of numbers into charts of a page: lines as SVG paths, ticks, and the values that hovering shows.

Coordinates are parts per thousand of the plot, from its left and upper edge. The page stretches the plot to its width,
and draws text beside it, so that letters keep their size on a phone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

SIZE = 1000
MAX_POINTS = 800
"""Points drawn of one series."""
MAX_LOG_TICKS = 7
MAX_VALUE = 1e100
"""Larger values are as good as infinite: they would leave nothing to see of the others."""
MIN_POINTS_TO_SMOOTH = 60
SMOOTHED_SHARE = 30
"""A moving mean takes this part of the points, one in ..., together."""
MIN_RATIO_FOR_LOG = 10.0

Point = tuple[float, float]


class Series(NamedTuple):
    """Points by ascending x, and how they look.

    colour: a number of the page's palette, 0 to 7.
    look: a line, a thin pale line behind others, a dashed line, or a line with a dot at every point.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    look: Literal["line", "pale", "dashed", "dots"] = "line"


class Mark(NamedTuple):
    """A vertical line with a label."""

    x: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Series over the same x.

    Attributes:
        unit: of the values; the words after the title.
        log: whether the values stand on a logarithmic scale; only values above 0 are drawn then.
        from_zero: whether the scale starts at 0.
        tall: whether it is the page's main chart.
        x_range: the ends of the x axis, for charts that share one; by default those of the points.
    """

    title: str
    unit: str
    series: Sequence[Series]
    log: bool = False
    from_zero: bool = False
    tall: bool = False
    marks: Sequence[Mark] = ()
    x_name: str = "step"
    x_range: Point | None = None


class Tick(NamedTuple):
    """A label of an axis; `at` is in percent from the left or upper edge."""

    at: float
    label: str


class Line(NamedTuple):
    """A series as it is drawn: `path` and `dots` are the `d` of SVG paths, `last` is its last value."""

    name: str
    colour: int
    look: str
    path: str
    dots: str
    last: str


class Drawing(NamedTuple):
    """A chart as the macro `chart` of parts.html.jinja expects it.

    values: JSON for the script: {"range": [first x, last x], "lines": [[[x, height, text], ...], ...]}.
    """

    chart: Chart
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]
    values: str
    label: str


def draw(chart: Chart) -> Drawing | None:
    """Returns the drawing of a chart, or None if no series has a point."""
    series = [one._replace(points=_drawable(one.points, chart.log)) for one in chart.series]
    series = [one for one in series if one.points]
    if not series:
        return None
    xs = [x for one in series for x in (one.points[0][0], one.points[-1][0])]
    first, last = chart.x_range or (min(xs), max(xs))
    values = [y for one in series for _, y in one.points]
    low, high, ticks = _scale(min(values), max(values), chart)
    x_axis, y_axis = Axis(first, last, False), Axis(low, high, chart.log)
    texts = Numbers(values)
    lines, hover = [], []
    for one in series:
        points = thinned(one.points, MAX_POINTS)
        at = [(x_axis.place(x), SIZE - y_axis.place(y)) for x, y in points]
        dots = _dots(at) if one.look == "dots" or len(at) == 1 else ""
        lines.append(Line(one.name, one.colour, one.look, _path(at), dots, texts(points[-1][1])))
        hover.append([[x, round(height), texts(y)] for (x, y), (_, height) in zip(points, at, strict=True)])
    steps = _linear_ticks(first, last, 6)
    if all(x == int(x) for x in xs):
        steps = [x for x in steps if x == int(x)] or [first]
    return Drawing(
        chart, lines, [Tick(x_axis.place(x) * 100 / SIZE, label) for x, label in labelled(steps)],
        [Tick(100 - y_axis.place(y) * 100 / SIZE, label) for y, label in
         (((y, labelled([y])[0][1]) for y in ticks) if chart.log else labelled(ticks))],
        [Tick(x_axis.place(x) * 100 / SIZE, label) for x, label in chart.marks if first <= x <= last],
        json.dumps({"range": [first, last], "lines": hover}, separators=(",", ":")),
        f"{chart.title}: " + "; ".join(f"{one.name} {texts(one.points[0][1])} to {texts(one.points[-1][1])}"
                                       for one in series))


class Axis(NamedTuple):
    """A range of values, on a linear or logarithmic scale."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """Returns the distance of a value from the low end, which is 0; the high end is at `SIZE`."""
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return SIZE * (at - low) / (high - low) if high > low else SIZE / 2


class Numbers:
    """Formats numbers that belong together with the same decimals: four significant digits of the middle one."""

    def __init__(self, values: Sequence[float], digits: int = 4):
        sizes = sorted(abs(value) for value in values if value)
        middle = sizes[len(sizes) // 2] if sizes else 1.0
        self.digits, self.in_powers = digits, not 1e-3 <= middle < 1e9
        self.decimals = max(digits - 1 - math.floor(math.log10(middle)), 0)

    def __call__(self, value: float) -> str:
        return in_powers(value, self.digits) if self.in_powers else f"{value:,.{self.decimals}f}"


def in_powers(value: float, digits: int) -> str:
    """Formats a number as 2.50e-5, or 0."""
    if not value:
        return "0"
    number, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{number}e{int(power)}"


def labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Returns round numbers with their texts, all with the decimals that the finest of them needs."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest and not 1e-3 <= largest < 1e9:
        digits = next(count for count in range(1, 16) if count == 15 or all(
            abs(float(in_powers(tick, count)) - tick) <= 1e-9 * largest for tick in ticks))
        return [(tick, in_powers(tick, digits)) for tick in ticks]
    decimals = next(count for count in range(16) if count == 15 or all(
        abs(round(tick, count) - tick) <= 1e-9 * largest for tick in ticks))
    return [(tick, f"{tick:,.{decimals}f}") for tick in ticks]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Returns the moving mean: of each point and its neighbours, where possible equally many on both sides.

    At the beginning, where a loss falls fast, the point has as few after it as before it.
    """
    reach = max(len(points) // SMOOTHED_SHARE // 2, 2)
    sums = list(accumulate((y for _, y in points), initial=0.0))
    means = []
    for index, (x, _) in enumerate(points):
        beside = min(reach, index)
        first, end = index - beside, min(index + beside + 1, len(points))
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def with_mean(name: str, points: Sequence[Point], colour: int = 0) -> list[Series]:
    """Returns a line, or a pale one with its moving mean if there are many points."""
    if len(points) < MIN_POINTS_TO_SMOOTH:
        return [Series(name, points, colour)]
    return [Series(name, points, colour, "pale"), Series(f"{name}, mean", smoothed(points), colour)]


def needs_log(points: Sequence[Point]) -> bool:
    """Whether a linear scale would flatten most of the points: the highest is far above the middle one."""
    values = sorted(y for _, y in points)
    return bool(values) and values[0] > 0 and values[-1] > MIN_RATIO_FOR_LOG * values[len(values) // 2]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most `most` points: the first and last, and the lowest and highest of each stretch between them."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for number in range(stretches):
        stretch = inner[len(inner) * number // stretches:len(inner) * (number + 1) // stretches]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return [*kept, points[-1]]


def _drawable(points: Sequence[Point], log: bool) -> list[Point]:
    return [(x, y) for x, y in points if abs(y) < MAX_VALUE and (y > 0 or not log)]


def _scale(low: float, high: float, chart: Chart) -> tuple[float, float, list[float]]:
    """Returns the ends of the value axis, with some room, and its ticks."""
    if chart.log:
        low, high = low / 1.15, high * 1.15
        return low, high, _log_ticks(low, high)
    if chart.from_zero:
        low = min(low, 0.0)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low if chart.from_zero and low == 0 else low - room, high + room
    return low, high, [tick for tick in _linear_ticks(low, high, 6 if chart.tall else 4) if low <= tick <= high]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Returns about `most` round numbers from `low` to `high`: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [number * step for number in numbers]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten, or where they are too many only powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0 ** power for power in powers if low <= 10.0 ** power <= high]
    if len(tens) > 3:
        return tens[::-(-len(tens) // MAX_LOG_TICKS)]
    return [tick for power in powers for factor in (1, 2, 5) if low <= (tick := factor * 10.0 ** power) <= high]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _dots(points: Sequence[Point]) -> str:
    """Returns a path of lines without length: with round ends they are dots, however the plot is stretched."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
