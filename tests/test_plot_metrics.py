"""scripts/plot_metrics.py, as people run it."""

import json
from pathlib import Path

import pytest
from programs import refuse, succeed

PLOT = "scripts/plot_metrics.py"


@pytest.fixture
def metrics(tmp_path) -> Path:
    path = tmp_path / "a_256_metrics.jsonl"
    lines = [{"step": step, "loss": 5.0 - step} for step in range(4)] + [{"step": 3, "eval_loss": 2.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_picture_replaces_the_one_before(metrics, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "loss.png"
    out.write_text("the one before")
    assert f"wrote {out}" in succeed(PLOT, metrics, "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_256_metrics.jsonl", "loss.png"]


def test_what_is_no_place_for_a_picture_is_one_line(metrics, tmp_path):
    before = metrics.read_bytes()
    assert "_metrics.jsonl: expected a name that ends in .png, .svg, .pdf, .jpg" in refuse(PLOT, metrics, "--out",
                                                                                        metrics)
    assert metrics.read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: is a folder, expected a file" in refuse(PLOT, metrics, "--out", tmp_path / "folder.png")
    assert "--out /proc: cannot write there" in refuse(PLOT, metrics, "--out", "/proc/loss.png")


def test_a_missing_matplotlib_is_one_line(metrics, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    line = refuse(PLOT, metrics, "--out", tmp_path / "a.png", PYTHONPATH=f"{tmp_path}:{Path(__file__).parent.parent}")
    assert line == "error: pictures need matplotlib: pip install -e '.[dev]'"
