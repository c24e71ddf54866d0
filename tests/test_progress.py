"""The rate that the bar and the metrics file tell."""

import json

from minimind_sft.training import progress
from minimind_sft.training.progress import Progress


def test_the_rate_is_of_training_alone_however_often_it_pauses(tmp_path, monkeypatch):
    """Steps of 0.2 s and 50 tokens; after each second one a validation takes 30 s."""
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=12, step=0, is_main=True) as shown:
        for step in range(1, 13):
            now += 0.2
            shown.advance(step, 1.0, 1e-3, 50)
            shown.log(step)
            if step % 2 == 0:
                now += 30.0
                shown.pause()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["supervised_tokens_per_second"] for line in lines] == [250.0] * 12


def test_the_rate_is_that_of_the_last_second(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress(tmp_path / "metrics.jsonl", total_steps=3, step=0, is_main=True) as shown:
        for step, seconds in enumerate([2.0, 4.0, 0.5], 1):
            now += seconds
            shown.advance(step, 1.0, 1e-3, 100)
            shown.log(step)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["supervised_tokens_per_second"] for line in lines] == [50.0, 25.0, 25.0]
