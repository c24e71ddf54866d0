"""The inspector lists fields that nothing reads, without failing."""

import json

import pytest
from chats import BUNDLED, TOKENIZER
from programs import run_here, write_rows

from minimind_sft.data import workers
from minimind_sft.data.samples import PretrainEncoder, SFTEncoder
from minimind_sft.data.sources import find_sources
from minimind_sft.inspection.figures import figures
from minimind_sft.inspection.page import render_page
from minimind_sft.inspection.report import make_report
from minimind_sft.inspection.survey import survey
from minimind_sft.inspection.tally import MAX_IGNORED, Tally
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import PretrainSettings, SFTSettings

pytestmark = pytest.mark.slow

INSPECT = "scripts/inspect_data.py"


def row(number: int, **fields) -> dict:
    return {"messages": [{"role": "user", "content": f"q{number}", "id": number},
                         {"role": "assistant", "content": "a", "weight": 1}], "kind": "k", **fields}


def report_of(*files, rows=None, config=None):
    sources = find_sources([str(path) for path in files], "FILE")
    return make_report(survey(list(files), rows or SFTEncoder(BUNDLED, 60)), sources, [],
                       config or changed(SFTSettings(), max_seq_len=60), 1, True)


def test_ignored_fields_are_counted_and_the_data_stay_fine(tmp_path):
    first = write_rows(tmp_path / "a.jsonl", [row(1, source="web"), row(2, source="", tags=["x"]),
                                              {"messages": 5, "x": 1}])
    second = write_rows(tmp_path / "b.jsonl", [row(3, source="web"), {"text": "t", "url": "u"}])
    report = report_of(first, second)
    assert report.parts[0].tally.ignored == {"source": 1, "tags": 1, "messages[].id": 2}
    assert report.parts[1].tally.ignored == {"source": 1, "url": 1, "messages[].id": 1}
    assert report.totals[0].tally.ignored == {"source": 2, "url": 1, "tags": 1, "messages[].id": 3}
    assert report.parts[1].verdict == "fine" and not report.parts[1].odd
    assert ("ignored", "fields that nothing reads, by rows: messages[].id 2, source 1, tags 1") in figures(
        report.parts[0].tally)
    assert "messages[].id 3, source 2" in render_page(report, [])
    assert report.as_json()["files"][0]["ignored_fields"] == {"source": 1, "tags": 1, "messages[].id": 2}


def test_the_program_lists_ignored_fields_and_exits_with_0(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [row(1, source="web\x1b[2J"), row(2, **{"\x1b[2J" * 20: 1})])
    done = run_here(INSPECT, data, "--strict", 1)
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  ignored")]
    assert line.startswith("  ignored   fields that nothing reads, by rows: messages[].id 2, ⟨U+001B⟩[2J")
    assert line.endswith(" 1, source 1") and line.count("⟨U+001B⟩") == 10  # 40 characters of the name
    assert "\x1b" not in done.stdout
    plain = write_rows(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "a"}])
    assert "fields that nothing reads" not in run_here(INSPECT, plain).stdout


def test_all_other_fields_of_running_text_are_ignored(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{"text": "t", "messages": [], "meta": {"url": "u"}}])
    report = report_of(data, rows=PretrainEncoder(TOKENIZER, 10), config=changed(PretrainSettings(), max_seq_len=10))
    assert report.parts[0].tally.ignored == {"meta": 1}


def test_many_different_names_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CHUNK_ROWS", 7)
    data = write_rows(tmp_path / "a.jsonl", [{"text": "t", f"field {number}": 1} for number in range(2 * MAX_IGNORED)])
    (part,) = report_of(data).parts
    assert len(part.tally.ignored) == MAX_IGNORED + 1 and part.tally.ignored.total() == 2 * MAX_IGNORED
    assert part.tally.ignored["others"] == MAX_IGNORED
    (shown,) = [text for name, text in figures(part.tally) if name == "ignored"]
    assert ": others 1,000, field 0 1, field 1 1, field 10 1, " in shown and shown.endswith(", ...")
    assert shown.count("field ") == 19


def test_an_empty_tally_has_no_ignored_fields():
    assert Tally().ignored == {} and "ignored" not in dict(figures(Tally()))


@pytest.mark.parametrize("name", ["images", "loss", "rejected_response"])
def test_rows_with_unsupported_fields_are_bad(tmp_path, name):
    data = write_rows(tmp_path / "a.jsonl", [row(1), row(2, **{name: ["x"]})])
    done = run_here(INSPECT, data, "--json")
    assert done.returncode == 1
    (part,) = json.loads(done.stdout)["files"]
    (bad,) = part["findings"]["bad"]["rows"]
    assert bad["line"] == 2 and f": {name}: expected" in bad["detail"]
