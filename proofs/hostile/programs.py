"""Runs programs in processes forked from a server (hostile/server.py)."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hostile.tries import Outcome, Try
from minimind_sft.paths import REPOSITORY

PATIENCE = 600.0
"""Seconds for a command that prepares the files of a kind; none needs a tenth of them."""


class Server:
    """A process that runs programs of `project` (hostile/server.py), one after another."""

    def __init__(self, project: Path):
        self._project = project
        self._one_at_a_time = threading.Lock()
        environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1",
                       "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"}
        program = Path(__file__).with_name("server.py")
        self._process = subprocess.Popen([sys.executable, str(program), str(project)], env=environment,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")

    def run(self, one: Try, folder: Path) -> Outcome:
        """Runs the command of a try in `folder`."""
        asked = {"command": list(map(str, one.command)), "folder": str(folder), "stdin": one.stdin,
                 "seconds": one.seconds, "memory_mib": one.memory_mib, "environment": dict(one.environment)}
        assert self._process.stdin and self._process.stdout
        with self._one_at_a_time:  # two kinds may prepare their files at the same time
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of {self._project} ended at {one.name}: {' '.join(map(str, one.command))}")
        return Outcome(**json.loads(answer), folder=folder)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@cache
def own_server() -> Server:
    """Returns the server of this checkout, which makes the files of all kinds."""
    return Server(REPOSITORY)


def succeed(folder: Path, *command: str) -> None:
    """Runs a program of this checkout in `folder`, to make the files of a kind.

    Raises:
        RuntimeError: with its error, if it fails.
    """
    outcome = own_server().run(Try("", command, seconds=PATIENCE, memory_mib=4000), folder)
    if outcome.status:
        raise RuntimeError(f"{' '.join(command)}: {outcome.stderr}")


_MAKING = threading.RLock()


@cache
def _shelf() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Returns a folder that `make` filled when it was first asked for. Kinds copy from it, and change nothing there."""
    with _MAKING:
        folder = Path(_shelf().name) / name
        if not folder.exists():
            folder.mkdir()
            make(folder)
    return folder
