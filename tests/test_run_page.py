"""The report of a run: its verdict, scores before and after, what was forgotten, answers, and the whole page."""

import json
import re
from pathlib import Path

import pytest
from test_run_files import ABOUT, ANSWER, EVALUATION

from minimind_sft.errors import UserError
from minimind_sft.report.answers import answer_pairs, first_shown, summary_of
from minimind_sft.report.curves import labelled
from minimind_sft.report.details import changed_settings, data_table, machine, pairs_of, subtitle
from minimind_sft.report.formats import duration, moment, number, pair, percent
from minimind_sft.report.page import Badge, Finding
from minimind_sft.report.run_files import End, Run, Warned, read_run
from minimind_sft.report.run_page import Inspected, charts, render_run_page, write_run_page
from minimind_sft.report.scores import figures, forgetting, score_table
from minimind_sft.report.verdict import judge, outcome


def evaluated(step: int, loss: float | None, right: int | None = None, **more) -> dict:
    exact = {} if right is None else {"exact_match": right / 10, "exact_by_kind": {"a": [right, 6], "b": [0, 4]}}
    return {"step": step, "eval_loss": loss, "perplexity": None, **exact, **more}


def run(*evaluations: dict, end: str | None = "finished", losses=(3.0, 2.0), settings=None, **more) -> Run:
    steps = [{"step": number, "loss": loss} for number, loss in enumerate(losses, 1)]
    last = max([line["step"] for line in (*steps, *evaluations)], default=0)
    about = {**ABOUT, "settings": {"keep_best": 1, **(settings or {})}, "step": 0}
    return Run(Path("x_metrics.jsonl"), [about], steps, list(evaluations), end=End(last, end, 9.0) if end else None,
               **more)


PARTS = {"by_source": {"a": {"loss": 2.0}, "b": {"loss": 1.0}}}
WORSE = {"by_source": {"a": {"loss": 1.0}, "b": {"loss": 1.2}}}


@pytest.mark.parametrize(("made", "weight", "sentence"), [
    (run(evaluated(0, 8.425), evaluated(40, 0.1522)), "fine", "Better: the validation loss fell from 8.43 to 0.152."),
    (run(evaluated(0, 2.0, 1), evaluated(40, 1.0, 5)), "fine",
     "Better: exact match rose from 1 to 5 of 10 answers, and the validation loss fell from 2.00 to 1.00."),
    (run(evaluated(0, 2.0, 5), evaluated(40, 1.0, 3)), "warning",
     "Mixed: exact match fell from 5 to 3 of 10 answers, and the validation loss fell from 2.00 to 1.00."),
    (run(evaluated(0, 2.0), evaluated(40, 2.5)), "wrong", "Worse: the validation loss rose from 2.00 to 2.50."),
    (run(evaluated(0, 2.0, 5), evaluated(40, 2.001, 5)), "warning",
     "No better: exact match stayed at 5 of 10 answers, and the validation loss stayed at 2.001."),
    (run(evaluated(0, 2.0), evaluated(20, 1.0), evaluated(40, 1.3)), "fine",
     "Better: the validation loss fell from 2.00 to 1.00 at step 20, whose weights were kept, and rose to 1.30 "
     "afterwards."),
    (run(evaluated(0, 2.0), evaluated(20, 1.0), evaluated(40, 1.3), settings={"keep_best": 0}), "fine",
     "Better: the validation loss fell from 2.00 to 1.30; at step 20 it was lower, 1.00."),
    (run(evaluated(0, 2.0, 1), evaluated(20, 1.0, 3), evaluated(40, 1.3, 6), settings={"best_by": "exact_match"}),
     "fine", "Better: exact match rose from 1 to 6 of 10 answers, and the validation loss fell from 2.00 to 1.30."),
    (run(evaluated(0, 2.0, 1), evaluated(20, 1.3, 6), evaluated(40, 1.2, 6), settings={"best_by": "exact_match"}),
     "fine", "Better: exact match rose from 1 to 6 of 10 answers, and the validation loss fell from 2.00 to 1.20."),
    (run(evaluated(0, 2.0, **PARTS), evaluated(40, 1.0, **WORSE)), "warning",
     "Better: the validation loss fell from 2.00 to 1.00; but the loss rose on b."),
    (run(evaluated(0, 2.0), evaluated(20, 1.0), end="interrupted"), "fine",
     "Interrupted at step 20 of 40; better: the validation loss fell from 2.00 to 1.00."),
    (run(evaluated(0, 2.0), evaluated(20, 1.0), end="failed"), "wrong",
     "Failed at step 20 of 40; better: the validation loss fell from 2.00 to 1.00."),
    (run(evaluated(0, 2.0), evaluated(20, 1.0), end=None), "fine",
     "Not finished at step 20 of 40; better: the validation loss fell from 2.00 to 1.00."),
    (run(evaluated(0, 2.0), evaluated(40, 1.0), warnings=[Warned(9, "x", "y")]), "fine",
     "Better: the validation loss fell from 2.00 to 1.00; see the warning below."),
    (run(evaluated(0, 2.0), evaluated(40, 1.0), warnings=[Warned(0, "leaked_rows", "y"), Warned(9, "x", "y")]),
     "warning", "Better: the validation loss fell from 2.00 to 1.00; see the warnings below."),
    (run(evaluated(40, 1.0, 3)), "hint", "Validation loss 1.00 and 3 of 10 answers exact; nothing was measured before "
                                         "the first step to compare with."),
    (run(end="finished"), "hint", "Not known to be better: there were no evaluation data; the training loss fell from "
                                  "3.00 to 2.00."),
    (run(evaluated(0, 2.0), losses=(3.0,), end="interrupted"), "hint",
     "Interrupted at step 1 of 40; not known to be better: there was no evaluation after the first step; the training "
     "loss was 3.00."),
    (run(losses=(), end="finished"), "hint", "No step was made."),
    (run(evaluated(0, 2.0), evaluated(40, None)), "wrong", "The validation loss is not finite."),
])
def test_the_verdict(made, weight, sentence):
    assert judge(made) == (weight, sentence)


def test_headline_figures():
    made = run(evaluated(0, 8.4, 1, token_accuracy=0.1), evaluated(40, 1.5, 5, token_accuracy=0.75))
    made.evaluations[0]["perplexity"], made.evaluations[1]["perplexity"] = 4447.1, 4.48
    made.steps[-1].update(supervised_tokens_per_second=900.4, tokens_per_second=4000.0, eval_seconds=0.9,
                          save_seconds=0.01)
    assert [tuple(one) for one in figures(made, outcome(made))] == [
        ("Exact match", "50%", "5 of 10 answers; before 1", "fine"),
        ("Validation loss", "1.50", "before 8.40", "fine"),
        ("Perplexity", "4.48", "before 4,447", "fine"),
        ("Token accuracy", "75.0%", "before 10.0%", "fine"),
        ("Time", "9 s", "10% evaluating", None),
        ("Speed", "900", "supervised tokens/s; 4,000 of all", None),
    ]
    made = run(end=None)
    assert [tuple(one) for one in figures(made, outcome(made))] == [("Training loss", "2.00", "at first 3.00", None)]


def test_scores_by_part():
    made = outcome(run(evaluated(0, 2.0, 1, by_kind={"a": {"loss": 2.0, "token_accuracy": 0.5, "tokens": 9},
                                                     "b": {"loss": 1.0, "token_accuracy": None, "tokens": 1200}}),
                       evaluated(40, 1.0, 4, by_kind={"a": {"loss": 1.0, "token_accuracy": 0.9, "tokens": 9},
                                                      "b": {"loss": 1.001, "token_accuracy": 0.4, "tokens": 1200}})))
    table = score_table("kind", "by_kind", made)
    assert [column.name for column in table.columns] == [
        "kind", "exact before", "exact after", "token accuracy before", "token accuracy after", "loss before",
        "loss after", "tokens", "change"]
    assert table.rows == [
        ["a", "1 of 6", "4 of 6", "50.0%", "90.0%", "2.000", "1.000", "9", Badge("fine", "better")],
        ["b", "0 of 4", "0 of 4", "-", "40.0%", "1.000", "1.001", "1,200", Badge("hint", "same")]]
    assert score_table("file", "by_source", made) is None
    only_after = outcome(run(evaluated(40, 1.0, **PARTS)))
    assert [column.name for column in score_table("file", "by_source", only_after).columns] == [
        "file", "token accuracy", "loss", "tokens"]


def test_forgetting_is_named():
    (note,) = forgetting(outcome(run(evaluated(0, 2.0, **PARTS), evaluated(40, 1.0, **WORSE))))
    assert note == ("warning", "The loss rose on 1 of 2 files: b from 1.00 to 1.20.")
    (note,) = forgetting(outcome(run(evaluated(0, 2.0, **PARTS), evaluated(40, 1.0, **PARTS))))
    assert note == ("fine", "Nothing measured here was forgotten: the loss rose on none of the 2 files.")
    assert forgetting(outcome(run(evaluated(40, 1.0, **PARTS)))) == []


def test_answers_before_and_after():
    def asked(step: int, *exact: bool | None) -> dict:
        return evaluated(step, 2.0 - step / 40, answers=[
            {"kind": "k", "question": f"q{number}", "expected": "e" * 2000 if one is None else "e",
             "answer": f"a{step}", "exact": one} for number, one in enumerate(exact)])

    made = run(asked(0, True, False, False, True, None), asked(40, True, False, True, False, None))
    pairs = answer_pairs(outcome(made))
    assert [(one.question, one.fate, one.before, one.after) for one in pairs] == [
        ("q2", "learned", "a0", "a40"), ("q3", "lost", "a0", "a40"), ("q1", "wrong", "a0", "a40"),
        ("q0", "right", "a0", "a40"), ("q4", "shown", "a0", "a40")]
    assert pairs[-1].expected == "e" * 1000 + " ... (1,000 more characters)"
    assert summary_of(pairs) == ("1 wrong before and right after; 1 right before and wrong after; 1 wrong both times; "
                                 "1 right both times; 1 without a comparison")
    shown, rest = first_shown(pairs[:1] * 20 + pairs[1:3] + pairs[3:4] * 5)
    assert ([one.fate for one in shown], len(rest)) == (["learned"] * 3 + ["lost", "wrong"] + ["right"] * 3, 19)
    (only,) = answer_pairs(outcome(run(asked(40, False))))
    assert (only.before, only.fate, summary_of([only])) == (None, "wrong", "1 wrong")
    (other,) = answer_pairs(outcome(run(asked(0, True, True), asked(40, True))))
    assert other.before is None  # resumed with other questions
    assert answer_pairs(outcome(run())) == []


def test_details():
    made = run(evaluated(0, 2.0), settings={"seed": 7, "data_path": ["a.jsonl"], "weight_decay": 0.1})
    made.about["machine"] = {"processor": "P", "device_name": "P", "memory": None, "gpu": {"name": "G"}}
    made.steps[-1].update(peak_share=0.25, peak_memory_mib=1234.4)
    assert subtitle(made) == "Full fine-tuning · started 2026-05-01 10:00 UTC · step 2 of 40"
    assert ("seed", "7") in changed_settings(made) and "keep_best" not in dict(changed_settings(made))
    assert machine(made) == [("processor", "P"), ("memory", "-"), ("gpu.name", "G"),
                             ("share of matmul peak", "25.0% (median)"), ("peak memory", "1,234 MiB")]
    made.about["data"].append({"name": "b.jsonl", "truncated": 3, "bad_rows": 1, "rows": 10_000})
    assert data_table(made).rows == [
        ["a.jsonl", "training", "3", "3", "50", "18.0%", "-"],
        ["b.jsonl", "", "10,000", "-", "-", "-", Badge("warning", "3 cut, 1 bad")]]
    assert pairs_of({"a": [1, 2], "b": True, "c": 12345}) == [("a", "1 2"), ("b", "True"), ("c", "12,345")]
    assert changed_settings(Run(Path("x"))) == [] and data_table(Run(Path("x"))) is None


def test_formats():
    assert [percent(share) for share in (None, 0, 0.00001, 0.5, 0.99999, 1)] == [
        "-", "0.0%", "0.1%", "50.0%", "99.9%", "100%"]
    assert [duration(seconds) for seconds in (0.4, 59.6, 125, 599.7, 3599, 90_061)] == [
        "0 s", "1 min 00 s", "2 min 05 s", "10 min", "1 h 00 min", "25 h 01 min"]
    assert pair(2.30121, 2.30034) == ("2.301", "2.300") and pair(2.0, 2.0) == ("2.00", "2.00")
    assert number(4561.4) == "4,561" and number(0.0) == "0.00"
    assert moment("2026-05-01T12:30:00+02:00") == "2026-05-01 10:30 UTC" == moment("2026-05-01T10:30:00")
    assert labelled([]) == []


def test_the_page_of_a_whole_run(tmp_path):
    evil = "<script>alert(1)</script>"
    lines = [{"step": 0, "run": {**ABOUT, "name": evil, "command": evil}}, EVALUATION, {"step": 10, "loss": 2.0},
             {**EVALUATION, "step": 10, "eval_loss": 2.0, "answers": [{**ANSWER, "answer": evil, "question": evil}]},
             {"step": 10, "warning": evil, "name": "x"}, {"step": 10, "end": "finished", "seconds": 3.0}]
    metrics, path = tmp_path / "x_metrics.jsonl", tmp_path / "x_report.html"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Inspected(evil, "training", [(evil, evil)], [Finding("wrong", evil, [evil], 3)])
    write_run_page(path, metrics, [found], evil)
    page = path.read_text(encoding="utf-8")
    assert page.count("<script") == 1 and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 12
    assert not re.search(r"(src|href)\s*=\s*[\"']|url\(|@import|https?:", page)
    for heading in ("Answers", "Data", "Run"):
        assert f"<h2>{heading}" in page
    assert [drawing.chart.title for drawing in charts(read_run(metrics), outcome(read_run(metrics)))] == [
        "Loss", "Accuracy"]


def test_a_file_of_version_0_1_has_a_page(tmp_path):
    metrics = tmp_path / "full_sft_16_metrics.jsonl"
    metrics.write_text('{"step": 0, "eval_loss": 6.0, "perplexity": 403.4}\n{"step": 2, "epoch": 0, "loss": 5.5}\n'
                       '{"step": 2, "eval_loss": 5.0, "perplexity": 148.4}\n')
    page = render_run_page(read_run(metrics))
    assert "Better: the validation loss fell from 6.00 to 5.00." in page and "<h1>full_sft_16</h1>" in page


def test_a_file_without_a_line_has_a_page(tmp_path):
    metrics = tmp_path / "a_metrics.jsonl"
    metrics.touch()
    assert "No step was made." in render_run_page(read_run(metrics))
    with pytest.raises(UserError, match="cannot be read"):
        write_run_page(tmp_path / "b.html", tmp_path / "missing.jsonl")
