"""A run read from its metrics file: every kind of line, files of earlier versions, and what is refused."""

import json
from pathlib import Path

import pytest

from minimind_sft.errors import UserError
from minimind_sft.report.run_files import End, Warned, read_run

ABOUT = {"id": "ab", "name": "sft_32", "stage": "full_sft", "command": "python t.py", "total_steps": 40,
         "started": "2026-05-01T10:00:00+00:00", "settings": {"seed": 42}, "model": {"hidden_size": 32},
         "machine": {"cpu": "x"}, "versions": {"torch": "2.13"},
         "data": [{"name": "a.jsonl", "role": "training", "rows": 3, "samples": 3, "tokens": 50, "supervised": 9}]}
ANSWER = {"kind": "sum", "question": "1 + 1?", "expected": "2", "answer": "3", "exact": False}
EVALUATION = {"step": 0, "eval_loss": 2.5, "perplexity": 12.2, "token_accuracy": 0.4, "eval_tokens": 90,
              "by_source": {"e.jsonl": {"loss": 2.5, "token_accuracy": 0.4, "tokens": 90}},
              "by_kind": {"sum": {"loss": 2.5, "token_accuracy": 0.4, "tokens": 90}},
              "exact_match": 0.0, "exact_by_kind": {"sum": [0, 1]}, "answers": [ANSWER]}


def written(path: Path, *lines: dict | str, end: str = "\n") -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end,
                    encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "sft_32_metrics.jsonl"


def test_every_kind_of_line(path):
    step = {"step": 10, "loss": 2.0, "grad_norm": None, "tokens_per_second": 900.5}
    warning = {"step": 10, "warning": "The loss is high.", "name": "loss_spike"}
    run = read_run(written(path, {"step": 0, "run": ABOUT}, EVALUATION, step, warning,
                           {"step": 10, "end": "interrupted", "seconds": 3.5}))
    assert (run.name, run.total_steps, run.last_step, run.settings) == ("sft_32", 40, 10, {"seed": 42})
    assert run.starts == [{**ABOUT, "step": 0}] and run.steps == [step] and run.evaluations == [EVALUATION]
    assert run.warnings == [Warned(10, "loss_spike", "The loss is high.")]
    assert run.end == End(10, "interrupted", 3.5)
    assert run.curve("loss") == [(10, 2.0)] and run.curve("grad_norm") == [] and run.curve("eval_loss") == [(0, 2.5)]


def test_a_resumed_run_goes_on(path):
    run = read_run(written(path, {"step": 0, "run": ABOUT}, {"step": 10, "end": "interrupted"},
                           {"step": 10, "run": {**ABOUT, "name": "b"}}))
    assert run.end is None and run.name == "b" and [start["step"] for start in run.starts] == [0, 10]


def test_a_file_of_version_0_1(path):
    run = read_run(written(path, {"step": 0, "eval_loss": 6.0, "perplexity": 403.4, "supervised_tokens_per_second": 0},
                           {"step": 1, "epoch": 0, "loss": None, "learning_rate": 0.1, "skipped": "x"},
                           {"step": 2, "epoch": 0, "loss": 5.5, "learning_rate": 0.1}))
    assert (run.name, run.about, run.end, run.total_steps) == ("sft_32", {}, None, None)
    assert run.curve("loss") == [(2, 5.5)] and run.curve("learning_rate") == [(1, 0.1), (2, 0.1)]


def test_fields_and_lines_of_later_versions_are_ignored(path):
    assert read_run(written(path, {"step": 1, "loss": 2.0, "new": [1]}, {"step": 2, "other": 1})).last_step == 1


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', "{", ""])
def test_a_line_that_is_still_being_written_is_left_out(path, rest):
    assert read_run(written(path, {"step": 1, "loss": 2.0}, rest, end="")).last_step == 1


def test_a_complete_last_line_needs_no_line_end(path):
    assert read_run(written(path, {"step": 1, "loss": 2.0}, end="")).last_step == 1


@pytest.mark.parametrize(("line", "message"), [
    ('{"step": 2, "lo', ":2: expected a line of JSON, found broken JSON at column "),
    ("", ":2: expected a line of JSON, found broken JSON at column 1"),
    ("[1]", ":2: expected an object, found a list"),
    ("[" * 100_000, ":2: the JSON is nested too deeply"),
    ('{"step": 1, "step": 2}', ":2: step is there twice"),
    ('{"step": 1, "name": "\\ud800", "warning": ""}', r":2: a string holds \ud800, half of a surrogate pair"),
    ('{"step": 2, "loss": NaN}', ":2: NaN is not a number in JSON"),
    ({"loss": 2.5}, ":2: step: expected a whole number, found nothing; a line of metrics looks like "),
    ({"step": -1}, ":2: step: expected a whole number, found -1; "),
    ({"step": 0, "loss": 1}, ":2: step: expected at least 1, as on the line before, found 0"),
    ({"step": 1, "loss": "small"}, ':2: loss: expected a finite number, found "small"'),
    ({"step": 1, "loss": True}, ":2: loss: expected a finite number, found true"),
    ('{"step": 1, "loss": 1e999}', ":2: 1e999 is too large a number"),
    ({"step": 1, "end": "gone"}, ':2: end: expected one of finished, stopped early, interrupted, failed, found "gone"'),
    ({"step": 1, "warning": 3}, ":2: warning: expected text, found 3"),
    ({"step": 1, "run": []}, ":2: run: expected an object, found an empty list"),
    ({"step": 1, "run": {"name": 1}}, ":2: run: name: expected text, found 1"),
    ({"step": 1, "run": {"started": "today"}}, ":2: run: started: expected a time such as "
                                                  '2026-05-01T10:00:00+00:00, found "today"'),
    ({"step": 1, "run": {"started": "9999-12-31T23:00:00-14:00"}}, ":2: run: started: expected a time such as "),
    ({"step": 1, "run": {"model": "text"}}, ':2: run: model: expected an object, found "text"'),
    ({"step": 1, "run": {"machine": [1]}}, ":2: run: machine: expected an object, found a list"),
    ({"step": 1, "run": {"data": [{"name": "a", "bad_rows": "<b>"}]}}, ":2: run: data[1]: bad_rows: expected a "),
    ({"step": 1, "run": {"total_steps": 10**300}}, ":2: run: total_steps: expected a number of float32, found 1000"),
    ({"step": 1, "loss": -1e308}, ":2: loss: expected a number of float32, found -1e+308"),
    ({"step": 10**300}, ":2: step: expected a whole number, found 1000"),
    ({"step": 1, "run": {"settings": [1]}}, ":2: run: settings: expected an object, found a list"),
    ({"step": 1, "run": {"data": [1]}}, ":2: run: data: expected a list of objects, found a list"),
    ({"step": 1, "run": {"data": [{"name": "a", "rows": "x"}]}}, ':2: run: data[1]: rows: expected a finite number, '
                                                                'found "x"'),
    (EVALUATION | {"step": 1, "by_kind": {"sum": 3}}, ":2: by_kind: sum: expected an object, found 3"),
    (EVALUATION | {"step": 1, "by_source": {"e": {"loss": "x"}}}, ':2: by_source: e: loss: expected a finite number, '
                                                                  'found "x"'),
    (EVALUATION | {"step": 1, "exact_by_kind": {"sum": [1]}}, ":2: exact_by_kind: sum: expected [right, asked], found "
                                                              "a list"),
    (EVALUATION | {"step": 1, "exact_by_kind": {"sum": [-1, 1]}}, ":2: exact_by_kind: sum: expected [right, asked]"),
    (EVALUATION | {"step": 1, "answers": {}}, None), (EVALUATION | {"step": 1, "perplexity": 1e304}, None),
    (EVALUATION | {"step": 1, "answers": {"a": 1}}, ":2: answers: expected a list, found an object"),
    (EVALUATION | {"step": 1, "answers": [ANSWER, {**ANSWER, "question": None}]},
     ":2: answers[2]: question: expected text, found null"),
    (EVALUATION | {"step": 1, "answers": [{**ANSWER, "exact": 1}]},
     ":2: answers[1]: exact: expected true, false or null, found 1"),
])
def test_a_line_that_is_not_as_expected_is_named(path, line, message):
    written(path, {"step": 1, "loss": 2.0}, line)
    if message is None:
        read_run(path)
        return
    with pytest.raises(UserError) as refused:
        read_run(path)
    assert str(refused.value).startswith(f"{path}{message}")
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < len(str(path)) + 200


def test_a_file_that_cannot_be_read_is_named(path):
    with pytest.raises(UserError, match="cannot be read"):
        read_run(path)
    path.write_bytes(b'{"step": 1, "loss": 2}\n\xff')
    with pytest.raises(UserError, match="not valid UTF-8"):
        read_run(path)
