"""scripts/plot_metrics.py, run as a user runs it."""

import json
import re
from pathlib import Path

import pytest
from programs import refuse, succeed

pytestmark = pytest.mark.slow

PLOT = "scripts/plot_metrics.py"


@pytest.fixture
def metrics(tmp_path) -> Path:
    path = tmp_path / "a_256_metrics.jsonl"
    lines = [{"step": step, "loss": 5.0 - step} for step in range(4)] + [{"step": 3, "eval_loss": 2.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_picture_replaces_the_earlier_one(metrics, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "loss.png"
    out.write_text("the earlier one")
    assert f"wrote {out}" in succeed(PLOT, metrics, "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_256_metrics.jsonl", "loss.png"]


def test_an_unusable_output_path_is_refused_in_one_line(metrics, tmp_path):
    before = metrics.read_bytes()
    assert "_metrics.jsonl: expected a name that ends in .png, .svg, .pdf, .jpg" in refuse(PLOT, metrics, "--out",
                                                                                        metrics)
    assert metrics.read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: is a folder, expected a file" in refuse(PLOT, metrics, "--out", tmp_path / "folder.png")
    assert "--out /proc: cannot write there" in refuse(PLOT, metrics, "--out", "/proc/loss.png")


def test_a_missing_matplotlib_is_reported_in_one_line(metrics, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    line = refuse(PLOT, metrics, "--out", tmp_path / "a.png", PYTHONPATH=f"{tmp_path}:{Path(__file__).parent.parent}")
    assert line == "error: pictures need matplotlib: pip install -e '.[dev]'"


NOT_METRICS = {
    "missing": (None, r"cannot be read \(No such file or directory\)"),
    "empty": ("", r"has no loss to draw; a run logs one every --log_interval steps"),
    "no loss": ('{"step": 1, "skipped": "x", "loss": null}\n', r"has no loss to draw"),
    "cut off": ('{"step": 1, "loss": 2.5}\n{"step": 2, "lo', r":2: .*"),
    "a list": ('[1, 2]\n', r":1: expected .*"),
    "no step": ('{"loss": 2.5}\n', r":1: expected a line of metrics with a step, "),
    "a word": ('{"step": 1, "loss": "small"}\n', r':1: loss: expected a number, found "small"'),
    "not UTF-8": ("\udcff", r"expected a metrics file, .*\(not UTF-8\)"),
}


@pytest.mark.parametrize("fault", NOT_METRICS)
def test_a_bad_metrics_file_is_refused_in_one_line(tmp_path, fault):
    content, message = NOT_METRICS[fault]
    path = tmp_path / "x_metrics.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    line = refuse(PLOT, path, "--out", tmp_path / "a.png")
    assert re.fullmatch(f"error: {path}:? ?{message}.*", line), line
    assert not (tmp_path / "a.png").exists()


def test_a_loss_too_large_for_a_perplexity_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "x_metrics.jsonl"
    path.write_text('{"step": 0, "eval_loss": 5000.0}\n{"step": 1, "eval_loss": 3}\n', encoding="utf-8")
    assert "wrote" in succeed(PLOT, path, "--out", tmp_path / "a.png")
