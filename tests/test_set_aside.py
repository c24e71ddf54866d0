"""Replaced files move aside together, even if the process is killed meanwhile."""

import multiprocessing
import signal
from pathlib import Path

import places
import pytest

from minimind_sft.errors import UserError
from minimind_sft.set_aside import bring_back, check_replaceable, moving_name, set_aside, set_aside_file
from minimind_sft.writing import MARKER, write_together

FORK = multiprocessing.get_context("fork")
NAMES = ("a.pth", "a.json", "a_metrics.jsonl")


def write(folder: Path, text: str, names=NAMES) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(text)
    return [folder / name for name in names]


def contents(folder: Path) -> dict[str, str]:
    """Returns the content of every file below a folder by its path."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_move_together_and_one_generation_is_kept(tmp_path):
    for text in ("first", "second"):
        set_aside(write(tmp_path, text), tmp_path / "a.previous")
        assert contents(tmp_path) == {f"a.previous/{name}": text for name in sorted(NAMES)}


def killed_at(place, nth: int, files: list[Path], previous: Path) -> int:
    """Sets files aside in a process that is killed when it passes a place for the `nth` time; returns its status."""
    def die_there() -> None:
        passes = iter(range(1, 1000))
        place(lambda: next(passes) == nth)
        set_aside(files, previous)

    process = FORK.Process(target=die_there)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("place", [places.before_rename, places.after_rename, places.before_sync, places.in_removing])
def test_a_kill_while_files_move_aside_loses_none(tmp_path, place):
    new, old = dict.fromkeys(NAMES, "new"), {f"a.previous/{name}": "old" for name in NAMES}
    for nth in range(1, 20):
        folder = tmp_path / str(nth)
        write(folder, "new")
        write(folder / "a.previous", "old")
        status = killed_at(place, nth, [folder / name for name in NAMES], folder / "a.previous")
        bring_back(folder / "a.previous")
        after = contents(folder)
        if status == 0:
            assert nth > 1, "it was never killed"
            return
        assert status == -signal.SIGKILL
        assert after in ({**new, **old}, {f"a.previous/{name}": "new" for name in NAMES})
        assert not list(folder.glob(".*"))
    raise AssertionError("it was killed every time")


def test_if_one_file_cannot_move_all_stay(tmp_path):
    files = write(tmp_path, "new")
    with pytest.raises(UserError, match=r"a\.previous: the earlier files cannot be moved there \(No such file"):
        set_aside([*files, tmp_path / "gone"], tmp_path / "a.previous")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_bringing_files_back_does_not_replace_a_newer_file(tmp_path):
    write(moving_name(tmp_path / "a.previous"), "old")
    (moving_name(tmp_path / "a.previous") / MARKER).touch()
    (tmp_path / "a.pth").write_text("mine")
    with pytest.raises(UserError, match=r"\.a\.previous\.tmp/a\.pth was being set aside when a program was killed"):
        bring_back(tmp_path / "a.previous")
    assert (tmp_path / "a.pth").read_text() == "mine"


def test_a_single_file_is_kept_beside_its_successor(tmp_path):
    path = tmp_path / "a.jsonl"
    assert set_aside_file(path) is None
    for text in ("first", "second"):
        path.write_text(text)
        assert set_aside_file(path) == tmp_path / "a.jsonl.previous"
    assert contents(tmp_path) == {"a.jsonl.previous": "second"}


def test_files_but_not_folders_may_be_replaced_with_overwrite(tmp_path):
    check_replaceable([tmp_path / "new"], overwrite=False, instead="choose another --out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"link: exists already; choose another --out, or --overwrite moves it to"):
        check_replaceable([tmp_path / "link"], overwrite=False, instead="choose another --out")
    check_replaceable([tmp_path / "link"], overwrite=True, instead="choose another --out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: is a folder, expected a file or nothing; choose another --out"):
        check_replaceable([tmp_path / "folder"], overwrite=True, instead="choose another --out")


def test_of_two_files_both_or_none_is_written(tmp_path):
    def fails(_: Path) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path, "old")
    with pytest.raises(UserError, match=r"a\.json: cannot be written \(No space left on device\)"):
        write_together({tmp_path / "a.pth": lambda to: to.write_text("new"), tmp_path / "a.json": fails})
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")
