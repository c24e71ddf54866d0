"""The metrics file of a resumed run: what is cut off, and what is nobody's to cut."""

import json

import pytest

from minimind_sft.errors import UserError
from minimind_sft.training.metrics import cut_metrics, read_metrics

LINES = [{"step": 0, "run": {"name": "a"}}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0},
         {"step": 3, "loss": 1.0}]


def written(path, *lines, end=b"\n"):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + end)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x_metrics.jsonl"


@pytest.mark.parametrize("rest", [b'{"step": 4, "lo', b"\0" * 50, b"\xff\xfe", b"", b'{"step": 4}\n{"st'])
def test_later_lines_and_what_a_kill_left_are_cut_off(path, rest):
    cut_metrics(written(path, *LINES, rest, end=b""), 2)
    assert read_metrics(path) == LINES[:3]


def test_a_complete_last_line_needs_no_line_end(path):
    cut_metrics(written(path, *LINES[:3], end=b""), 2)
    assert read_metrics(path) == LINES[:3]


def test_a_run_from_the_beginning_starts_an_empty_file(path):
    cut_metrics(written(path, b"anything"), 0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("lines", "message"), [
    ([b"Dear diary,", b"today"], ":1: expected a line of JSON, found broken JSON at column 1"),
    ([{"user": "q"}, {"user": "r"}], ":1: step: expected a whole number, found nothing"),
    ([LINES[0], b'{"step": 1, "lo', LINES[2]], ":2: expected a line of JSON, found broken JSON at "),
    ([LINES[0], {"step": 1, "loss": "small"}, LINES[2]], ":2: loss: expected a finite number, found "),
    ([LINES[0], b'{"step": 1, "warning": "\xff"}', LINES[2]], ":2: not valid UTF-8 (byte 25)"),
    ([LINES[0], LINES[2], LINES[1]], None),
])
def test_a_file_that_is_not_ours_stays_as_it_is(path, lines, message):
    before = written(path, *lines).read_bytes()
    if message is None:  # the last line is out of order, and nothing to keep follows
        cut_metrics(path, 2)
        assert read_metrics(path) == lines[:2]
        return
    with pytest.raises(UserError) as refused:
        cut_metrics(path, 2)
    assert str(refused.value).startswith(f"{path}{message}") and "move the file away" in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [b'{"step": "1"}', b"[1]", b"\xff", b'{"step": 9, "exact_by_kind": 3, "eval_loss": 1}',
                                 b'{"step": 9, "loss": 1' + b"0" * 400 + b"}"])
def test_metrics_with_a_line_that_cannot_be_read_are_none(path, bad):
    assert read_metrics(written(path, *LINES, bad)) == []
