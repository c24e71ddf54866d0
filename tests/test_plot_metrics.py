"""scripts/plot_metrics.py: runs as pictures."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from metrics_files import ordinary, write_lines
from programs import REPOSITORY, succeed

from minimind_sft.errors import UserError

PLOT = "scripts/plot_metrics.py"


@pytest.fixture
def plot(monkeypatch, capsys):
    """Runs the program in this process and returns what it prints."""
    main = runpy.run_path(str(REPOSITORY / PLOT))["main"]

    def call(*flags) -> str:
        monkeypatch.setattr(sys, "argv", [PLOT, *map(str, flags)])
        main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def metrics(tmp_path) -> Path:
    return write_lines(tmp_path / "a_256_metrics.jsonl", ordinary())


@pytest.mark.slow
def test_a_picture_replaces_the_earlier_one(metrics, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "loss.png"
    out.write_text("the earlier one")
    assert f"wrote {out}" in succeed(PLOT, metrics, "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_256_metrics.jsonl", "loss.png"]


def test_files_of_version_0_1_are_drawn_together_with_later_ones(plot, metrics, tmp_path):
    pytest.importorskip("matplotlib")
    old = REPOSITORY / "tests/written_by_0_1"
    plot(metrics, old / "out/full_sft_16_metrics.jsonl", old / "expected/full_sft_16_metrics.jsonl", "--out",
         tmp_path / "a.svg", "--title", "Three runs")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for words in ("Three runs", "a_256: validation 4.000 → 2.000", "out/full_sft_16: validation 5.790 → ",
                  "expected/full_sft_16: "):
        assert f"<!-- {words}" in text


@pytest.mark.parametrize(("name", "message"), [
    ("a_metrics.jsonl", r"--out .*a_metrics.jsonl: expected a name that ends in .png, .svg, .pdf, .jpg"),
    ("folder.png", r"--out .*folder.png: is a folder, expected a file or nothing"),
    ("a_256_metrics.jsonl/x.png", r"--out .*a_256_metrics.jsonl: cannot write there \(.*\)"),
])
def test_an_unusable_output_path_is_refused_in_one_line(plot, metrics, tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    before = metrics.read_bytes()
    with pytest.raises(UserError, match=f"^{message}$"):
        plot(metrics, "--out", tmp_path / name)
    assert metrics.read_bytes() == before


def test_a_missing_matplotlib_is_reported_in_one_line(plot, metrics, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"^pictures need matplotlib: pip install matplotlib$"):
        plot(metrics, "--out", tmp_path / "a.png")


NOT_METRICS = {
    "missing": (None, r": cannot be read \(No such file or directory\)"),
    "empty": ("", r": has no loss to draw; a run logs one every --log_interval steps"),
    "no loss": ('{"step": 1, "skipped": "x", "loss": null}\n', r": has no loss to draw.*"),
    "broken": ('{"step": 1, "loss": 2.5}\n{"step": 2, "lo\n', r":2: expected a line of JSON, found broken JSON .*"),
    "a list": ('[1, 2]\n', r":1: expected an object, found .*"),
    "no step": ('{"loss": 2.5}\n', r":1: step: expected a whole number, found nothing; a line of metrics .*"),
    "a word": ('{"step": 1, "loss": "small"}\n', r':1: loss: expected a finite number, found "small"'),
    "not UTF-8": ("\udcff", r": not valid UTF-8 \(byte 1\)"),
}


@pytest.mark.parametrize("fault", NOT_METRICS)
def test_a_bad_metrics_file_is_refused_in_one_line(plot, tmp_path, fault):
    content, message = NOT_METRICS[fault]
    path = tmp_path / "x_metrics.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}{message}$"):
        plot(path, "--out", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
