"""Metrics files that are read while runs write, resume and replace them."""

import json
import os

import pytest
from metrics_files import evaluated, ordinary, start, trained, write_lines

from minimind_sft.errors import UserError
from minimind_sft.report.following import FollowedRun, FollowedRuns
from minimind_sft.report.run_files import read_run
from minimind_sft.training.metrics import cut_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sft_32_metrics.jsonl"


def append(path, *lines, end="\n"):
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)


def updated(followed):
    """Updates and returns the training steps read so far."""
    followed.update()
    return [line["step"] for line in followed.run.steps]


def test_a_growing_file_is_read_on(path):
    followed = FollowedRun(write_lines(path, [start(), trained(1, 3.0)]))
    assert updated(followed) == [1] and followed.problem == ""
    version = followed.version
    assert updated(followed) == [1] and followed.version == version
    append(path, trained(2, 2.5))
    assert updated(followed) == [1, 2] and followed.version > version
    append(path, {"step": 2, "end": "finished", "seconds": 3.0})
    followed.update()
    assert followed.run == read_run(path) and followed.run.end.how == "finished"


def test_half_a_line_is_read_when_it_is_complete(path):
    line = json.dumps(trained(2, 2.5))
    followed = FollowedRun(write_lines(path, [trained(1, 3.0)]))
    for part in (line[:9], line[9:30]):
        append(path, part, end="")
        assert updated(followed) == [1]
    append(path, line[30:])
    assert updated(followed) == [1, 2] and followed.problem == ""


def test_a_resumed_run_replaces_the_lines_that_it_writes_again(path):
    followed = FollowedRun(write_lines(path, [start(), *(trained(step, 3.0) for step in range(1, 6))]))
    assert updated(followed) == [1, 2, 3, 4, 5]
    cut_metrics(path, 3)
    append(path, start(3), trained(4, 1.0), trained(5, 1.0), trained(6, 1.0), trained(7, 1.0))
    assert updated(followed) == [1, 2, 3, 4, 5, 6, 7] and followed.problem == ""
    assert [loss for _, loss in followed.run.curve("loss")] == [3.0] * 3 + [1.0] * 4


def test_a_file_that_is_cut_in_place_is_read_again(path):
    followed = FollowedRun(write_lines(path, [trained(step, 3.0) for step in range(1, 6)]))
    updated(followed)
    os.truncate(path, len(json.dumps(trained(1, 3.0))) + 1)
    assert updated(followed) == [1]
    longer = [trained(step, 1.0) for step in range(1, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in longer), encoding="utf-8")  # the same file, rewritten
    assert updated(followed) == list(range(1, 9)) and followed.run.curve("loss")[0] == (1, 1.0)


def test_a_file_that_goes_away_and_another_that_takes_its_place(path):
    followed = FollowedRun(path)
    assert updated(followed) == [] and followed.problem == f"{path}: not there yet" and followed.written is None
    write_lines(path, [trained(1, 3.0)])
    assert updated(followed) == [1] and followed.problem == ""
    path.rename(path.with_suffix(".previous"))
    assert updated(followed) == []
    write_lines(path, [trained(1, 9.0), trained(2, 9.0)])
    assert updated(followed) == [1, 2]


def test_lines_that_cannot_be_read_are_reported_and_the_others_shown(path):
    followed = FollowedRun(write_lines(path, [trained(1, 3.0)]))
    append(path, "{broken", trained(2, "small"), b"\xff".decode("latin-1"), trained(3, 2.0))
    assert updated(followed) == [1, 3]
    assert followed.problem.startswith(f"{path}:2: expected a line of JSON, found broken JSON")
    write_lines(path, [trained(1, 3.0)])
    assert updated(followed) == [1] and followed.problem == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_what_is_not_a_file_is_reported(tmp_path):
    os.mkfifo(tmp_path / "pipe_metrics.jsonl")
    followed = FollowedRun(tmp_path / "pipe_metrics.jsonl")
    followed.update()
    assert followed.problem == f"{tmp_path}/pipe_metrics.jsonl: a pipe, expected a file"


def test_a_folder_is_searched_again_each_time(tmp_path):
    runs = FollowedRuns([str(tmp_path)])
    assert runs.update() == []
    first = write_lines(tmp_path / "a_metrics.jsonl", ordinary())
    os.utime(first, (1000, 1000))
    assert [one.path for one in runs.update()] == [first]
    second = write_lines(tmp_path / "b_metrics.jsonl", [evaluated(0, 2.0)])
    (tmp_path / "other.jsonl").touch()
    found = runs.update()
    assert [one.path for one in found] == [second, first], "the one that wrote last comes first"
    assert runs.update()[1] is found[1]


def test_names_of_nothing_are_refused(tmp_path):
    FollowedRuns([str(tmp_path / "later_metrics.jsonl")])
    with pytest.raises(UserError, match=r"none: not there; expected metrics files, <save_dir>/<name>_metrics"):
        FollowedRuns([str(tmp_path / "none")])
