"""Runs programs of a project quickly, by forking a process that has imported them already.

    python proofs/hostile/server.py PROJECT

reads a JSON object per line from standard input, `{"command", "folder", "stdin", "seconds", "memory_mib",
"environment"}`, runs the command in a new process, and writes what came of it, `{"status", "stdout", "stderr",
"seconds", "memory_mib"}`.
"""

import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

ADDRESS_SPACE_GIB = 16
"""A process that reserves more ends with an error instead of taking the machine down."""
LONGEST_OUTPUT = 1_000_000
"""Bytes of a program's output that are kept."""
POLL_SECONDS = 0.01
LIBRARIES = ("matplotlib.pyplot", "rouge_score.rouge_scorer", "sacrebleu")
"""Optional libraries that some programs import when they need them, which takes longer than most tries."""


def import_project(project: Path) -> None:
    """Imports what the programs import, and nothing that starts a thread."""
    sys.path[0] = str(project)  # instead of this file's folder, whose modules have the names of packages
    import minimind_sft
    for module in pkgutil.walk_packages(minimind_sft.__path__, "minimind_sft."):
        with suppress(ImportError) if ".serving." in module.name else nullcontext():  # it needs optional packages
            importlib.import_module(module.name)
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)


def resident_mib(process: str = "self") -> float:
    """Returns a process's resident memory in MiB; 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


def run(project: Path, asked: dict) -> dict:
    """Runs one command; ends it, and what it started, at its time limit or at four times its memory limit."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(asked["stdin"].encode("utf-8", "surrogateescape"))
        given.seek(0)
        waiting, start = os.pipe()
        process = os.fork()
        if not process:
            os.read(waiting, 1)
            _be_the_program(project, asked, [given.fileno(), out.fileno(), err.fileno()])
        before = resident_mib(str(process))  # less than the server's: pages of libraries come back when they are used
        os.write(start, b".")
        os.close(waiting)
        os.close(start)
        status, usage, late = _wait(process, started + asked["seconds"], before + 4 * asked["memory_mib"])
        _end_group(process)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(LONGEST_OUTPUT).decode("utf-8", "replace"))
    return {"status": None if late else os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1],
            "seconds": time.monotonic() - started, "memory_mib": max(0.0, usage.ru_maxrss / 1024 - before)}


def _wait(process: int, deadline: float, most_mib: float) -> tuple[int, resource.struct_rusage, bool]:
    """Waits for the process; returns its status, its use of resources, and whether it was ended for the time."""
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return status, usage, False
        late = time.monotonic() > deadline
        if late or resident_mib(str(process)) > most_mib:
            os.kill(process, signal.SIGKILL)
            _, status, usage = os.wait4(process, 0)
            return status, usage, late
        time.sleep(POLL_SECONDS)


def _end_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _be_the_program(project: Path, asked: dict, streams: list[int]) -> None:
    """Becomes the program, as if Python had just started it."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # as in any program; programs wrap the other two
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_GIB * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update(asked["environment"])
    program, *flags = asked["command"]
    path = project / program
    os.chdir(asked["folder"])
    sys.argv, sys.path[0] = [str(path), *flags], str(path.parent)
    sys.path.insert(1, str(project))
    status = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                status = status or 1
        os._exit(status)


def main() -> None:
    project = Path(sys.argv[1]).resolve()
    import_project(project)
    for line in sys.stdin:
        print(json.dumps(run(project, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
