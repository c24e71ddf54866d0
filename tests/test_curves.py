"""Charts of a page: places, ticks, numbers, means and the values for hovering."""

import json
import math

import pytest

from minimind_sft.report.curves import (
    Axis,
    Chart,
    Mark,
    Numbers,
    Series,
    draw,
    labelled,
    needs_log,
    smoothed,
    thinned,
    with_mean,
)


def test_lines_stand_where_their_values_are():
    drawing = draw(Chart("Loss", "nats", [Series("a", [(0, 0.0), (5, 2.0), (10, 1.0)], 3, "dots")], from_zero=True))
    (line,) = drawing.lines
    assert line.path == "M0.0 1000.0L500.0 56.6L1000.0 528.3"  # 6% of room above the highest
    assert line.dots == "M0.0 1000.0h0M500.0 56.6h0M1000.0 528.3h0"
    assert (line.name, line.colour, line.look, line.last) == ("a", 3, "dots", "1.000")
    assert json.loads(drawing.values) == {
        "range": [0, 10], "lines": [[[0, 1000, "0.000"], [5, 57, "2.000"], [10, 528, "1.000"]]]}
    assert drawing.label == "Loss: a 0.000 to 1.000"


def test_a_logarithmic_scale():
    assert [Axis(1, 100, True).place(value) for value in (1, 10, 100)] == pytest.approx([0, 500, 1000])
    drawing = draw(Chart("x", "", [Series("a", [(0, 0.0), (1, 1.0), (2, 1000.0)])], log=True))
    assert [tick.label for tick in drawing.y_ticks] == ["1", "10", "100", "1,000"]
    assert len(json.loads(drawing.values)["lines"][0]) == 2  # 0 has no logarithm


def test_ticks_are_round_numbers_within_the_axis():
    drawing = draw(Chart("x", "", [Series("a", [(0, 0.13), (300, 8.9)])], tall=True))
    assert [(tick.label, tick.at) for tick in drawing.x_ticks] == [
        (label, pytest.approx(at)) for label, at in (("0", 0), ("50", 50 / 3), ("100", 100 / 3), ("150", 50),
                                                     ("200", 200 / 3), ("250", 250 / 3), ("300", 100))]
    assert [tick.label for tick in drawing.y_ticks] == ["0", "2", "4", "6", "8"]
    assert all(0 <= tick.at <= 100 for tick in drawing.y_ticks)


def test_steps_have_whole_ticks():
    drawing = draw(Chart("x", "", [Series("a", [(1, 1.0), (3, 2.0)])]))
    assert [tick.label for tick in drawing.x_ticks] == ["1", "2", "3"]


@pytest.mark.parametrize("points", [[(3, 2.0)], [(3, 2.0), (4, 2.0)], [(0, 0.0), (1, 0.0)], [(1, -5.0), (2, 5e12)],
                                    [(0, 1e-12), (1, 3e-12)], [(0, 1e308), (1, 9e99)]])
@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_can_be_drawn(points, from_zero, log):
    drawing = draw(Chart("x", "", [Series("a", points)], log=log, from_zero=from_zero))
    if drawing is None:
        assert log and all(y <= 0 for _, y in points)
        return
    assert drawing.lines[0].path and "nan" not in drawing.lines[0].path and "inf" not in drawing.lines[0].path
    assert drawing.x_ticks and all(math.isfinite(tick.at) for tick in (*drawing.x_ticks, *drawing.y_ticks))


def test_nothing_to_draw():
    assert draw(Chart("x", "", [Series("a", [])])) is None
    assert draw(Chart("x", "", [Series("a", [(0, math.nan), (1, math.inf)])])) is None


def test_a_lonely_point_is_a_dot_and_marks_outside_are_left_out():
    drawing = draw(Chart("x", "", [Series("a", [(5, 1.0)]), Series("b", [])], marks=[Mark(5, "in"), Mark(50, "out")],
                         x_range=(0, 10)))
    assert len(drawing.lines) == 1 and drawing.lines[0].dots.startswith("M500.0 ")
    assert drawing.marks == [(50.0, "in")]


def test_numbers_that_belong_together_have_the_same_decimals():
    texts = Numbers([0.512, 2.5, 31.25])
    assert [texts(value) for value in (0.512, 2.5, 31.25)] == ["0.512", "2.500", "31.250"]
    assert Numbers([12_345.6])(12_345.6) == "12,346"
    assert [Numbers([3e-4, 5e-4])(value) for value in (3e-4, 0.0)] == ["3.000e-4", "0"]
    assert Numbers([])(0.0) == "0.000"
    assert labelled([0.0, 0.05, 0.1]) == [(0.0, "0.00"), (0.05, "0.05"), (0.1, "0.10")]
    assert [text for _, text in labelled([0.0, 2e-4, 4e-4])] == ["0", "2e-4", "4e-4"]
    assert [text for _, text in labelled([0.0, 1_000.0])] == ["0", "1,000"]


def test_a_moving_mean_has_no_lag():
    line = [(x, 3.0 - x) for x in range(100)]
    assert [y for _, y in smoothed(line)][:98] == pytest.approx([y for _, y in line][:98])
    assert smoothed(line)[99] == (99, pytest.approx(-95.0))  # of the last three
    assert smoothed([(x, float(x == 50)) for x in range(100)])[49:52] == [
        (x, pytest.approx(0.2)) for x in (49, 50, 51)]  # two on each side
    assert [series.look for series in with_mean("a", line)] == ["pale", "line"]
    assert [series.look for series in with_mean("a", line[:59])] == ["line"]


def test_thinning_keeps_ends_and_extremes():
    points = [(x, 0.0) for x in range(10_000)]
    points[4321], points[7777] = (4321, 9.0), (7777, -9.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100 and kept == sorted(kept)
    assert {points[0], points[-1], points[4321], points[7777]} <= set(kept)
    assert thinned(points[:100], 100) == points[:100]


def test_a_spike_calls_for_a_logarithmic_scale():
    assert needs_log([(0, 1.0), (1, 2.0), (2, 21.0)])
    assert not needs_log([(0, 1.0), (1, 2.0), (2, 20.0)])
    assert not needs_log([(0, 0.0), (1, 2.0), (2, 900.0)]) and not needs_log([])
