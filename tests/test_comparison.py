"""Several runs compared: the verdict, the scores and what differs."""

import json
import runpy
import sys

import pytest
from metrics_files import data, evaluated, ordinary, start, trained, write_lines
from programs import PATIENCE, REPOSITORY

from minimind_sft.errors import UserError
from minimind_sft.report.comparison import Part, Row, compare, differences, evaluated_alike, may_be_chance
from minimind_sft.report.comparison_page import as_text, overlays, render_comparison, write_comparison
from minimind_sft.report.run_files import read_run

SETTINGS = {"learning_rate": 0.001, "epochs": 2, "keep_best": 1, "save_weight": "sft"}


@pytest.fixture
def made(tmp_path):
    """Returns a function that makes a run of the lines of its metrics file."""
    return lambda lines: read_run(write_lines(tmp_path / "x_metrics.jsonl", lines))


def asked(lines, *right):
    """Adds ten answers to each evaluation; `right` says how many of them are exact."""
    counts = iter(right)
    return [{**line, "exact_match": (n := next(counts)) / 10, "exact_by_kind": {"all": [n, 10]},
             "answers": [{"question": str(i), "answer": "", "exact": i < n} for i in range(10)]}
            if "eval_loss" in line else line for line in lines]


def verdict(**runs):
    return tuple(compare(runs).verdict)


def test_the_run_with_the_lowest_validation_loss_is_best(made):
    a, b, c = (made(ordinary(4.0, last)) for last in (2.0, 1.5, 3.0))
    assert verdict(a=a, b=b, c=c) == ("fine", "b is best: validation loss 1.50 against 2.00 (a).")
    assert verdict(a=a, b=made(ordinary(4.0, 1.995))) == (
        "hint", "No clear difference: the lowest validation losses are 1.995 (b) and 2.000 (a).")


def test_exact_answers_come_first(made):
    few, many = (made(asked(ordinary(4.0, last), 0, 0, 0, 0, right)) for last, right in ((2.0, 3), (1.5, 9)))
    assert verdict(a=few, b=many) == (
        "fine", "b is best: 9 of 10 answers exact against 3 (a); validation loss 1.50 against 2.00 (a).")
    worse = made(asked(ordinary(4.0, 3.0), 0, 0, 0, 0, 9))
    assert verdict(a=few, b=worse) == (
        "warning", "Mixed: b has 9 of 10 answers exact against 3 (a); a has validation loss 2.00 against 3.00 (b).")
    assert verdict(a=few, b=made(asked(ordinary(4.0, 1.0), 0, 0, 0, 0, 8))) == (
        "fine", "b is best: validation loss 1.00 against 2.00 (a); exact answers decide nothing, 8 of 10 (b) and 3 (a) "
                "may be chance.")
    assert verdict(a=few, b=made(asked(ordinary(4.0, 2.0), 0, 0, 0, 0, 3))) == (
        "hint", "No clear difference: exact answers decide nothing, 3 of 10 (a and b); the lowest validation losses "
                "are 2.00 (a) and 2.00 (b).")


def test_differences_of_few_answers_may_be_chance():
    stats = pytest.importorskip("scipy.stats")
    for gains, losses in ((5, 0), (6, 0), (12, 3), (11, 4), (0, 0), (40, 20), (30, 20)):
        marks = [(True, False)] * gains + [(False, True)] * losses + [(True, True), (False, False)] * 3
        better, worse = ({"answers": [{"question": str(i), "exact": pair[side]} for i, pair in enumerate(marks)]}
                         for side in (0, 1))
        p = stats.binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
        assert may_be_chance(better, worse) == may_be_chance(worse, better) == (p >= 0.05)
    assert may_be_chance({}, {}) and may_be_chance({"answers": [{"question": "a", "exact": True}] * 9},
                                                   {"answers": [{"question": "b", "exact": False}] * 9})


def test_the_evaluation_whose_weights_were_kept_counts(made):
    rises = [start(settings=SETTINGS), evaluated(0, 4.0), trained(1, 3.0), evaluated(10, 1.0), evaluated(20, 5.0)]
    last = [start(settings={**SETTINGS, "keep_best": 0}), *rises[1:]]
    scores = {row.name: row for row in compare({"best": made(rises), "last": made(last)}).scores}
    assert scores["validation loss"] == Row("validation loss", ["1.0000", "5.0000"], [0])
    assert scores["measured at step"].values == ["10", "20"]


def test_runs_on_different_evaluation_data_are_not_ranked(made):
    other = ordinary(4.0, 1.0, data=[data("a.jsonl", "training", 300), data("other.jsonl", "evaluation", 20)])
    fewer = [{**line, "eval_tokens": 150} if "eval_loss" in line else line for line in ordinary(4.0, 1.0)]
    for one in (made(other), made(fewer)):
        runs = {"a": made(ordinary()), "b": one}
        assert verdict(**runs) == ("warning", "Not known which is best: the runs were not evaluated on the same tokens "
                                              "of the same files, so their scores cannot be compared.")
        assert all(row.best == () for row in compare(runs).scores)
    assert evaluated_alike([made(ordinary()), made(ordinary())]) is True


def test_runs_that_cannot_be_ranked(made):
    assert verdict(a=made(ordinary()))[1] == "One run: there is nothing to compare it with."
    assert verdict(a=made(ordinary()), b=made([start(), trained(1, 2.0)]), c=made([]))[1] == (
        "Not known which is best: b, c were not evaluated after the first step.")
    broken = made([start(), evaluated(0, 4.0), {**evaluated(1, 1.0), "eval_loss": None}])
    assert verdict(a=broken, b=broken)[1] == "Not known which is best: no validation loss is finite."


def test_files_of_version_0_1_are_compared_by_what_they_have():
    files = [REPOSITORY / "tests/written_by_0_1" / name for name in ("expected/full_sft_16_metrics.jsonl",
                                                                     "out/full_sft_16_metrics.jsonl")]
    compared = compare(dict(zip("ab", map(read_run, files), strict=True)))
    assert compared.verdict.sentence == "a is best: validation loss 5.61 against 5.69 (b)."
    assert [note.text for note in compared.notes] == [
        "a, b: the metrics file does not record settings and data; a later version's would.",
        "Losses can be compared only if the runs were evaluated on the same data, which not all of the files record."]
    assert compared.differences == [] and "ended" not in [row.name for row in compared.scores]


def test_what_differs(made):
    a = made([start(settings=SETTINGS)])
    b = made([start(total_steps=80, settings={**SETTINGS, "epochs": 4, "save_weight": "b", "new": None},
                    versions={"torch": "2.12.0"}, model={"hidden_size": 64, "epochs": 4},
                    data=[data("b.jsonl", "training", 1)])])
    old = made([trained(1, 2.0)])
    assert {row.name: row.values for row in differences([a, b, old])} == {
        "total_steps": ["40", "80", "-"], "epochs": ["2", "4", "-"],
        "model: hidden_size": ["32", "64", "-"], "model: num_hidden_layers": ["2", "-", "-"],
        "model: vocab_size": ["6400", "-", "-"], "model: epochs": ["-", "4", "-"],
        "version: torch": ["2.13.0", "2.12.0", "-"], "version: minimind_sft": ["0.1.0", "-", "-"],
        "data: training": ["a.jsonl (300 samples, 9,000 tokens)", "b.jsonl (1 samples, 30 tokens)", "-"],
        "data: evaluation": ["e.jsonl (20 samples, 600 tokens)", "-", "-"]}
    assert differences([a, a]) == [] and differences([a, old]) == []


def test_a_setting_that_changed_when_the_run_was_resumed_has_its_step(made):
    resumed = made([start(settings=SETTINGS), trained(20, 2.0), start(20, settings={**SETTINGS, "epochs": 3}),
                    start(30, settings={**SETTINGS, "epochs": 3})])
    assert differences([resumed, made([start(settings=SETTINGS)])]) == [Row("epochs", ["2; from step 20: 3", "2"])]


def test_scores_by_kind_and_file(made):
    def parts(a, b):
        return {"loss": a, "tokens": 5}, {"loss": b, "tokens": 5}

    first, second = (dict(zip(("sum", "capital"), parts(*losses), strict=True)) for losses in ((1.0, 2.0), (0.5, 3.0)))
    exact = {"sum": [1, 2], "units": [0, 1]}
    one = made([start(), evaluated(5, 2.0, by_kind=first, by_source={}, exact_by_kind=exact)])
    other = made([start(), evaluated(5, 2.0, by_kind=second, by_source={}, exact_by_kind={"units": [1, 1]})])
    assert compare({"a": one, "b": other}).parts == [
        Part("Exact answers by kind", "kind", [Row("sum", ["1 of 2", "-"], []),
                                               Row("units", ["0 of 1", "1 of 1"], [1])]),
        Part("Loss by kind", "kind", [Row("capital", ["2.0000", "3.0000"], [0]),
                                      Row("sum", ["1.0000", "0.5000"], [1])])]


def test_the_tables_of_the_terminal(made):
    compared = compare({"a": made(ordinary()), "模型": made(ordinary(4.0, 1.5, settings={**SETTINGS, "epochs": 4}))})
    text = as_text(compared, 80)
    lines = text.splitlines()
    assert lines[0] == "                                  a      模型"
    assert "validation loss              2.0000    1.5000" in lines
    assert "epochs  2     4" in lines and lines[-1] == "模型 is best: validation loss 1.50 against 2.00 (a)."
    narrow = as_text(compared, 40).splitlines()
    assert narrow[:4] == ["1  a", "2  模型", "", "                                  1         2"]
    long = compare({"a": made(ordinary()), "b": made(ordinary(4.0, 1.5, settings={**SETTINGS, "epochs": "x" * 90}))})
    assert "What differs\nepochs\n  a  2\n  b  " + "x" * 90 + "\n" in as_text(long, 80)
    assert "What differs: nothing that the files record" in as_text(compare({"a": made(ordinary()),
                                                                             "b": made(ordinary())}), 80)


def test_curves_lie_over_each_other(made):
    many = made([start(), *(trained(step, 3.0) for step in range(1, 81)), *asked([evaluated(80, 2.0)], 5)])
    drawings = {drawing.chart.title: drawing for drawing in overlays(["a", "b"], [many, made(ordinary())])}
    assert list(drawings) == ["Training loss", "Validation loss", "Exact match", "Token accuracy", "Learning rate",
                              "Gradient norm", "Speed"]
    assert [(line.name, line.colour) for line in drawings["Training loss"].lines] == [("a", 0), ("b", 1)]
    assert json.loads(drawings["Exact match"].values)["range"] == [0, 80]
    assert drawings["Exact match"].lines[0].last.startswith("50")
    looks = [line.look for line in overlays([str(n) for n in range(10)], [many] * 10)[0].lines]
    assert looks == ["line"] * 8 + ["dashed"] * 2


def test_names_and_settings_cannot_become_markup(made):
    evil = made([start(settings={"<script>": "<img src=x>"}, command="<b>"), evaluated(5, 2.0)])
    text = render_comparison(compare({"<i>": evil, "b": made([start(), evaluated(5, 2.0)])}))
    body = text[text.index("<body>"):text.index("<script>")]
    assert not any(tag in body for tag in ("<i>&", "<img", "<script")) and "&lt;img src=x&gt;" in body


@pytest.fixture
def compare_runs(monkeypatch, capsys):
    """Runs the program in this process and returns what it prints."""
    main = runpy.run_path(str(REPOSITORY / "scripts/compare_runs.py"))["main"]

    def call(*flags) -> str:
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, flags)])
        main()
        return capsys.readouterr().out

    return call


def test_the_program(compare_runs, tmp_path):
    a = write_lines(tmp_path / "a_metrics.jsonl", ordinary())
    b = write_lines(tmp_path / "b_metrics.jsonl", ordinary(4.0, 1.5, settings={**SETTINGS, "epochs": 4}))
    page = tmp_path / "new/comparison.html"
    assert compare_runs(a, b, "--html", page).endswith(
        f"b is best: validation loss 1.50 against 2.00 (a).\n\nwrote {page}\n")
    text = page.read_text(encoding="utf-8")
    assert "<h1>2 runs compared</h1>" in text and "b is best: validation loss" in text


def test_bad_input_of_the_program_is_refused_in_one_line(compare_runs, tmp_path):
    a = write_lines(tmp_path / "a_metrics.jsonl", ordinary())
    for flags, message in (([a], "expected at least two metrics files to compare, found one"),
                           ([a, a], "given 2 times"), ([a, tmp_path / "none"], "none: cannot be read"),
                           ([a, a, "--html", tmp_path], "expected a name that ends in .html"),
                           ([a, tmp_path, "--html", a / "x.html"], "cannot write there")):
        with pytest.raises(UserError, match=message):
            compare_runs(*flags)


@pytest.mark.slow
def test_the_page_in_the_browser_shows_the_values_of_all_runs_at_a_step(browser, made, tmp_path):
    runs = {"a": made(ordinary()), "b": made(ordinary(4.0, 1.5, settings={**SETTINGS, "data_path": "x" * 300}))}
    write_comparison(tmp_path / "page.html", compare(runs))
    page = browser.new_page(viewport={"width": 380, "height": 800})
    page.set_default_timeout(PATIENCE * 1000)
    complaints, asked_for = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    chart = page.locator(".chart", has_text="Validation loss")
    assert chart.locator("output").all_inner_texts() == ["2.000", "1.500"]
    chart.locator(".plot").hover(position={"x": 2, "y": 20})
    assert chart.locator("output").all_inner_texts() == ["4.000", "4.000"]
    assert page.locator(".chart .at").first.inner_text() == "step 0"
    assert page.evaluate("document.documentElement.scrollWidth") <= 380, "a phone need not scroll sideways"
    assert complaints == [] and asked_for == [(tmp_path / "page.html").as_uri()]
