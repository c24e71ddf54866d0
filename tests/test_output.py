"""Terminals without our characters, readers that leave, full disks, torchrun's report: in every program."""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest
from programs import (
    CHAT,
    NEW,
    PATIENCE,
    REPOSITORY,
    SFT,
    TORCHRUN,
    program,
    questions,
    run,
    run_here,
    run_without_room,
    write_rows,
)

pytestmark = pytest.mark.slow

COMPARE, CONVERT, ESTIMATE, INSPECT, PLOT, TOKENIZER = (
    "scripts/compare_runs.py", "scripts/convert_data.py", "scripts/estimate_memory.py", "scripts/inspect_data.py",
    "scripts/plot_metrics.py", "trainer/train_tokenizer.py")


def python(code: str, *flags: str, **options) -> subprocess.CompletedProcess:
    """Runs `code`, which defines `main`, like one of our programs."""
    code = f"import os, sys\nfrom minimind_sft.errors import *\n{code}\nrun_program(main)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **options.pop("environment", {})}
    return subprocess.run([sys.executable, *flags, "-c", code], env=environment, timeout=PATIENCE,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


@pytest.mark.parametrize(("encoding", "expected"), [
    ("ascii", rb"#|-[\u4f60\u597d] \xe9 -> <x> \udcff"),
    ("cp1252", rb"#|-[\u4f60\u597d] " + b"\xe9" + rb" -> " + b"\x8bx\x9b" + rb" \udcff"),
    ("gbk", "█▏─[你好] é → <x> ".encode("gbk") + rb"\udcff"),
    ("utf-8", "█▏─⟦你好⟧ é → ‹x› ".encode() + rb"\udcff"),
])
def test_characters_missing_from_the_encoding_are_replaced(encoding, expected):
    code = r"def main(): [print('█▏─⟦你好⟧ é → ‹x› \udcff', file=f, flush=True) for f in (sys.stdout, sys.stderr)]"
    done = python(code, environment={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, expected, expected)


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "python -u"])
def test_a_program_continues_when_its_pipe_is_closed(tmp_path, flags):
    receive, send = os.pipe()
    os.close(receive)
    done = python(f"def main():\n for i in range(9999): print(i, flush=i % 2)\n print(1, file=sys.stderr)\n"
                  f" open({str(tmp_path / 'written')!r}, 'w').close()", *flags, stdout=send, stderr=send)
    os.close(send)
    assert done.returncode == 0 and (tmp_path / "written").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110
@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "python -u"])
def test_output_to_a_full_disk_is_an_error(flags):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = python("def main(): print('the report')", *flags, stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"error: standard output: cannot be written (No space left on device)\n"


def test_any_full_disk_error_is_reported_in_one_line():
    done = python("import errno\ndef main(): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/data/x.bin')")
    assert (done.returncode, done.stderr) == (
        2, b"error: /data/x.bin: cannot be written (No space left on device)\n")


def test_a_path_that_cannot_be_used_is_reported_in_one_line():
    done = python("import errno\ndef main(): raise OSError(errno.ENAMETOOLONG, 'File name too long', 'x' * 5000)")
    assert (done.returncode, done.stderr.decode()) == (
        2, f"error: {'x' * 200}: cannot be used (File name too long)\n")


@pytest.mark.parametrize(("ranks", "at_exit"), [("1", b"regular"), ("2", b"")])
@pytest.mark.parametrize(("last", "status", "error"), [
    ("print('done')", 0, b""),
    ("raise UserError('a.jsonl:3: broken')", 2, b"error: a.jsonl:3: broken"),
], ids=["success", "failure"])
def test_one_of_several_ranks_exits_at_once_with_its_status(ranks, at_exit, last, status, error):
    """During a regular exit, Gloo's threads can abort the process, even after a run that succeeded."""
    done = python(f"import atexit\ndef main(): atexit.register(print, 'regular'); {last}",
                  environment={"WORLD_SIZE": ranks})
    assert (done.returncode, done.stderr.strip()) == (status, error)
    assert done.stdout.split() == [*([b"done"] if status == 0 else []), *([at_exit] if at_exit else [])]


def test_the_inspector_replaces_missing_characters_like_all_programs(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", questions(3))
    done = run_here(INSPECT, rows, encoding="ascii")
    assert done.returncode == 0 and "#" in done.stdout and "\\u25" not in done.stdout


def test_an_unexpected_error_keeps_its_traceback():
    done = python("def main(): raise FileNotFoundError(2, 'No such file', 'x')")
    assert done.returncode == 1 and b"Traceback" in done.stderr


@pytest.mark.parametrize(("error", "seconds", "message"), [
    ("UserError('a.jsonl:3: broken')", 0, "error: a.jsonl:3: broken"),
    ("ProcessLost('rank 1 is gone')", 60,
     "error: rank 1 is gone; --from_resume 1 continues from the last resume state"),
])
def test_torchrun_receives_the_message_and_sees_a_lost_rank_as_a_consequence(tmp_path, error, seconds, message):
    file = tmp_path / "error.json"
    done = python(f"import time\nnow = time.time()\ntime.time = lambda: 1000.0\ndef main(): raise {error}",
                  environment={"TORCHELASTIC_ERROR_FILE": str(file), "RANK": "2"})
    assert done.stderr.decode() == f"[rank 2] {message}\n"
    assert json.loads(file.read_text()) == {
        "message": {"message": message, "extraInfo": {"timestamp": str(1000 + seconds)}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a folder with Chinese conversations and the weights and metrics of a run on them."""
    if find_spec("matplotlib"):
        import matplotlib.font_manager  # noqa: F401  # the first time, it says that it builds a cache, and writes it
    folder = tmp_path_factory.mktemp("output")
    answer = {"role": "assistant", "content": "好的。"}
    write_rows(folder / "中文.jsonl", [{"conversations": [{"role": "user", "content": f"第{number}个问题？"}, answer]}
                                     for number in range(20)])
    run_here(SFT, *NEW, "--data_path", folder / "中文.jsonl", "--save_dir", folder, "--max_steps", 2,
             "--log_interval", 1)
    return folder


PROGRAMS = {
    "trainer": lambda made, out: [SFT, *NEW, "--data_path", made / "中文.jsonl", "--save_dir", out, "--max_steps", 1],
    "chat": lambda made, out: [CHAT, "--save_dir", made, "--prompt", "你好", "--max_new_tokens", 3],
    "score": lambda made, out: [CHAT, "--save_dir", made, "--score", made / "中文.jsonl", "--max_new_tokens", 2],
    "inspector": lambda made, out: [INSPECT, made / "中文.jsonl"],
    "convert": lambda made, out: [CONVERT, made / "中文.jsonl", "--out", out / "rows.jsonl", "--eval_rows", 5,
                                   "--eval_out", out / "eval.jsonl"],
    "estimate": lambda made, out: [ESTIMATE, "--preset", "demo"],
    "compare": lambda made, out: [COMPARE, made / "full_sft_32_metrics.jsonl", REPOSITORY /
                                  "tests/written_by_0_1/out/full_sft_16_metrics.jsonl", "--html", out / "a.html"],
    "plot": lambda made, out: [PLOT, made / "full_sft_32_metrics.jsonl", "--out", out / "loss.png"],
    "tokenizer": lambda made, out: [TOKENIZER, "--data_path", made / "中文.jsonl", "--vocab_size", 300, "--save_dir",
                                     out],
}


RUNNABLE = [pytest.param(name, marks=pytest.mark.skipif(name == "plot" and not find_spec("matplotlib"),
                                                        reason="matplotlib is not installed")) for name in PROGRAMS]


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_program_runs_on_an_ascii_terminal(made, tmp_path, name):
    done = run_here(*PROGRAMS[name](made, tmp_path), encoding="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii() and done.stdout.strip()


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_program_succeeds_when_its_pipe_is_closed(made, tmp_path, name):
    receive, send = os.pipe()
    os.close(receive)
    command, options = program(*PROGRAMS[name](made, tmp_path))
    done = subprocess.run(command, stdout=send, stderr=subprocess.PIPE, timeout=PATIENCE, **options)
    os.close(send)
    assert (done.returncode, done.stderr) == (0, "")
    if name == "convert":
        assert (tmp_path / "eval.jsonl").read_text(encoding="utf-8").count("\n") == 5


def without_room(file_bytes: int, *arguments: object) -> str:
    """Returns the error line of such a program."""
    return run_without_room(file_bytes, *arguments).stderr


def test_scores_are_shown_even_if_their_file_has_no_room(made, tmp_path):
    out = tmp_path / "answers.jsonl"
    done = run_without_room(100, *PROGRAMS["score"](made, tmp_path), "--score_out", out)
    assert done.stdout.splitlines()[-1].startswith("exact match: ")
    assert done.stderr.splitlines()[-1] == f"error: {out}: cannot be written (File too large)"


def test_a_temporary_folder_without_room_is_named(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", questions(2000))
    assert without_room(20_000, CONVERT, rows, "--out", tmp_path / "out.jsonl") == (
        f"error: {tempfile.gettempdir()}: the rows cannot be kept there (File too large); the variable TMPDIR names "
        "another folder\n")


def test_a_page_and_a_picture_without_room_are_named(made, tmp_path):
    page = tmp_path / "page.html"
    assert without_room(5_000, INSPECT, made / "中文.jsonl", "--html", page) == (
        f"error: {page}: cannot be written (File too large)\n")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "loss.png"
    assert without_room(9_000, PLOT, made / "full_sft_32_metrics.jsonl", "--out", picture) == (
        f"error: {picture}: cannot be written (File too large)\n")
    assert list(tmp_path.iterdir()) == []


def test_under_torchrun_our_error_line_is_the_last(tmp_path):
    rows = write_rows(tmp_path / "bad.jsonl", [*questions(1), {"conversations": "x"}])
    done = run(SFT, *NEW, "--data_path", rows, "--save_dir", tmp_path / "out",
               module=TORCHRUN)
    *_, line, border = done.stderr.strip().splitlines()
    assert line.startswith(f"  traceback : error: {rows}:2: conversations: ") and set(border) == {"="}
