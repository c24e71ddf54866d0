"""The report at the end of a run: with the inspector's findings, and one line if it cannot be written."""

import json

import pytest
from chats import BUNDLED, chat
from programs import write_rows

from minimind_sft.data.samples import SFTEncoder
from minimind_sft.inspection import of_run
from minimind_sft.inspection.of_run import inspect_beginnings, write_report
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings

ENCODER = SFTEncoder(BUNDLED, 60)


@pytest.fixture
def settings(tmp_path) -> SFTSettings:
    data = write_rows(tmp_path / "a.jsonl", [chat("q", "a"), chat("q", "a"), chat("r", "龘" * 90), chat("s", "b")])
    held = write_rows(tmp_path / "e.jsonl", [chat("q", "a")])
    return changed(SFTSettings(), data_path=(str(data),), eval_data_path=(str(held),), max_seq_len=60)


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "x_metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    return path


def test_the_findings_of_the_inspector(settings, tmp_path):
    (training, evaluation), looked_at = inspect_beginnings(settings, ENCODER)
    assert (training.name, training.role, looked_at) == (str(tmp_path / "a.jsonl"), "training", "")
    assert [finding.text for finding in training.findings] == [
        "1 row longer than max_seq_len, and therefore cut", "1 row the same as an earlier one"]
    assert [(finding.weight, finding.text) for finding in evaluation.findings] == [
        ("wrong", "1 row also in the training data")]
    assert ("rows", "4 of 4; by form: conversations (role, content) 4") in training.facts


def test_only_the_first_rows_are_looked_at(settings, monkeypatch):
    monkeypatch.setattr(of_run, "MAX_ROWS", 4)
    (training, _), looked_at = inspect_beginnings(settings, ENCODER)
    assert [finding.text for finding in training.findings] == ["1 row the same as an earlier one"]
    assert looked_at == ("The inspector has looked at the first 2 rows of each file; scripts/inspect_data.py looks at "
                         "all of them.")


def test_the_report_has_them(settings, metrics, tmp_path):
    page = tmp_path / "x_report.html"
    assert write_report(page, metrics, settings, ENCODER) == f"report      {page}"
    assert "1 row also in the training data" in page.read_text(encoding="utf-8")


def test_data_that_are_gone_cost_their_findings_only(settings, metrics, tmp_path):
    (tmp_path / "a.jsonl").unlink()
    page = tmp_path / "x_report.html"
    assert write_report(page, metrics, settings, ENCODER) == f"report      {page}"
    assert "The inspector could not look at the data: --data_path" in page.read_text(encoding="utf-8")


def test_an_inspector_that_fails_costs_its_findings_only(settings, metrics, tmp_path, monkeypatch):
    monkeypatch.setattr(of_run, "inspect_beginnings", lambda *_: {}["no such figure"])
    page = tmp_path / "x_report.html"
    assert write_report(page, metrics, settings, ENCODER) == f"report      {page}"
    assert "The inspector could not look at the data: " in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_costs_one_line(settings, metrics, tmp_path, monkeypatch):
    (tmp_path / "folder.html").mkdir()
    line = write_report(tmp_path / "folder.html", metrics, settings, ENCODER)
    assert line == f"report      none: {tmp_path}/folder.html: a folder, expected a file or nothing"
    metrics.write_text("{}\n")
    line = write_report(tmp_path / "x.html", metrics, settings, ENCODER)
    assert line.startswith(f"report      none: {metrics}:1: step: expected ")
    monkeypatch.setattr(of_run, "write_run_page", lambda *_: 1 / 0)
    line = write_report(tmp_path / "x.html", metrics, settings, ENCODER)
    assert line == f"report      none: {tmp_path}/x.html: ZeroDivisionError: division by zero"
    assert not (tmp_path / "x.html").exists()
