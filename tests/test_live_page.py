"""The live page: what it says about runs, and how the browser keeps up with them."""

import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

import pytest
from metrics_files import evaluated, ordinary, start, trained, write_lines
from programs import PATIENCE, program

from minimind_sft.report import live, live_page
from minimind_sft.report.following import FollowedRun, FollowedRuns
from minimind_sft.report.live import LiveServer
from minimind_sft.report.live_page import LivePage, live_policy, run_line, seconds_left
from minimind_sft.report.page import Badge
from minimind_sft.report.run_files import read_run


def line_of(path, lines):
    followed = FollowedRun(write_lines(path, lines))
    followed.update()
    return run_line("sft", followed)


def test_a_run_in_the_overview(tmp_path):
    path = tmp_path / "a_metrics.jsonl"
    running = [start(total_steps=200), evaluated(0, 4.0), *(trained(step, 4.0 - step / 10) for step in range(1, 21))]
    line = line_of(path, running)
    assert (line.state, line.steps, line.done) == (Badge("hint", "training"), "20 of 200", 10.0)
    assert (line.loss, line.validation, line.speed, line.left) == ("2.00", "4.00", "500", "18 s")
    assert line_of(path, [*running, {"step": 20, "end": "failed"}]).state == Badge("wrong", "failed")
    assert line_of(path, ordinary())[2:5] == (Badge("fine", "finished"), "40 of 40", 100.0)
    assert line_of(path, [])[2:8] == (Badge("hint", "waiting"), "0", None, "-", "-", "-")


def test_the_time_left_counts_the_steps_since_the_last_start(tmp_path):
    first = [start(total_steps=100), *(trained(step, 3.0, step_seconds=9.0 * step) for step in range(1, 11))]
    again = [start(10, total_steps=100), *(trained(step, 3.0, step_seconds=2.0 * (step - 10)) for step in (11, 12, 14))]

    def left(lines):
        return seconds_left(read_run(write_lines(tmp_path / "a_metrics.jsonl", lines)))

    assert left(first) == pytest.approx(90 * 9.0)
    assert left([*first, *again]) == pytest.approx(86 * 2.0)
    assert left([*first, *again[:2]]) is None and left([trained(1, 3.0), trained(2, 3.0)]) is None


def test_names_and_lines_of_files_cannot_become_markup(tmp_path):
    write_lines(tmp_path / "<b>&x_metrics.jsonl", [start(name="<i>name", command="<script>alert(1)</script>"),
                                                  {"step": 1, "warning": "<img src=x>", "name": "w"}])
    (tmp_path / "'\"onload=_metrics.jsonl").write_text('{"step": "<script>"}\n', encoding="utf-8")
    page = LivePage(FollowedRuns([str(tmp_path)]))
    for query in ({}, {"run": "<b>&x"}, {"run": "<script>"}):
        text = page("/content", query)
        assert not any(bad in text for bad in ("<b>&x", "<script", "<img", "<i>name", "'\"onload"))
        assert "&lt;b&gt;&amp;x" in text
    assert "&lt;img src=x&gt;" in page("/content", {"run": "<b>&x"})
    assert "There is no run &lt;script&gt;." in page("/content", {"run": "<script>"})


def test_a_run_that_describes_little_of_itself_is_shown(tmp_path):
    write_lines(tmp_path / "a_metrics.jsonl", [{"step": 0, "run": {}}, {"step": 1, "loss": None},
                                               {"step": 1, "eval_loss": None}])
    assert "step 1" in LivePage(FollowedRuns([str(tmp_path)]))("/content", {})


def test_no_run_yet(tmp_path):
    text = LivePage(FollowedRuns([str(tmp_path)]))("/", {})
    assert "<title>no run yet</title>" in text and "As soon as a run writes its metrics file" in text


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "MAX_WORK", 1.0)
    with LiveServer(0, LivePage(FollowedRuns([str(tmp_path)])), live_policy()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_browser_keeps_up_with_the_run(browser, address, tmp_path):
    path = write_lines(tmp_path / "a_metrics.jsonl", ordinary(4.0, 2.0)[:20])
    page = browser.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_text("live", exact=True).wait_for()
    assert page.title().startswith("step 17 of 40: ")

    page.locator("summary", has_text="settings").click()
    page.locator(".plot").first.hover()
    page.locator(".chart .at", has_text="step ").first.wait_for()
    write_lines(path, ordinary(4.0, 1.0))  # another run under the same name
    page.get_by_text("finished", exact=True).first.wait_for()
    assert page.title().startswith("step 40 of 40: ")
    assert page.locator("details").last.get_attribute("open") is not None, "what was open stays open"
    assert page.locator(".chart .at").first.inner_text().startswith("step "), "the pointer still shows values"

    write_lines(tmp_path / "b_metrics.jsonl", [start(), trained(1, 3.0)])
    page.locator("a", has_text="a").first.wait_for()
    path.unlink()
    page.get_by_text("finished", exact=True).wait_for(state="detached")
    assert page.title() == "step 1 of 40: b"
    assert complaints == []


@pytest.mark.slow
def test_the_browser_says_when_a_run_is_silent_and_when_the_server_is_gone(browser, tmp_path):
    for name, lines in (("running", [start(), trained(1, 3.0)]), ("ended", ordinary())):
        os.utime(write_lines(tmp_path / f"{name}_metrics.jsonl", lines), (time.time() - 3600,) * 2)
    with LiveServer(0, LivePage(FollowedRuns([str(tmp_path)])), live_policy()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(server.address)
        page.get_by_text("live", exact=True).wait_for()
        ages = page.locator("[data-written]")
        for age in ages.all_inner_texts():
            assert 60 <= int(re.fullmatch(r"(\d+) min ago", age)[1]) < 120  # an hour, and the time that the test takes
        assert [one.get_attribute("class").split() for one in ages.all()] == [["number"], ["number", "warning"]]
        blocked = page.evaluate("fetch('https://example.com/').then(() => 'sent', error => String(error))")
        server.shutdown()
        thread.join()
    page.get_by_text("watch_training.py does not answer since").wait_for()
    assert "Failed to fetch" in blocked, "the page may talk to its server only"


@pytest.mark.slow
def test_the_program_serves_until_it_is_interrupted(tmp_path):
    write_lines(tmp_path / "a_metrics.jsonl", ordinary())
    command, options = program("scripts/watch_training.py", tmp_path, "--port", 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        line = process.stdout.readline()
        address = re.search(r"open (http://127\.0\.0\.1:\d+/) in a browser", line)[1]
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            assert "<title>step 40 of 40: a</title>" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0 and process.stderr.read() == ""


def test_a_page_is_made_again_only_when_a_run_has_changed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(live_page, "render", lambda template, **values: made.append(template) or f"page {len(made)}")
    path = write_lines(tmp_path / "a_metrics.jsonl", ordinary()[:9])
    page = LivePage(FollowedRuns([str(tmp_path)]))
    assert [page("/content", {}), page("/content", {}), page("/", {})] == ["page 1", "page 1", "page 2"]
    write_lines(path, ordinary())
    assert [page("/content", {}), page("/content", {"run": "a"})] == ["page 3", "page 3"]
    write_lines(tmp_path / "b_metrics.jsonl", ordinary())
    assert [page("/content", {"run": name}) for name in ("", "a", "b", "x", "y", "a")] == [
        "page 4", "page 5", "page 6", "page 7", "page 8", "page 5"]
