"""A server as a process of its own: its address, its memory, its output and its end."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from minimind_sft.paths import REPOSITORY

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
START_SECONDS, STOP_SECONDS = 300.0, 120.0
SAMPLE_SECONDS = 0.5
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class ServerProcess:
    """Runs scripts/serve_openai_api.py with `flags` on a free port, and writes down its memory (Linux).

    Raises:
        RuntimeError: if it ends before it listens, with its output.
    """

    def __init__(self, flags: Sequence[str], log: Path, project: Path = REPOSITORY):
        self.log = log
        environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(project / "scripts/serve_openai_api.py"), "--port", "0", *flags],
                stdout=output, stderr=subprocess.STDOUT, env=environment)
        self.port = self._wait_for_port()
        self.memory: list[tuple[float, float]] = []
        """Seconds since the start, and resident MiB."""
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := ADDRESS.search(self.output()):
                return int(found[1])
            time.sleep(0.05)
        self._process.kill()
        raise RuntimeError(f"the server did not start:\n{self.output()}")

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._done.wait(SAMPLE_SECONDS):
            self.memory.append((time.monotonic() - started, self.resident_mib()))

    def resident_mib(self) -> float:
        """Returns the process's resident memory; 0 where /proc does not tell."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def open_files(self) -> int:
        """Returns how many files and sockets the process has open; 0 where /proc does not tell."""
        try:
            return sum(1 for _ in Path(f"/proc/{self._process.pid}/fd").iterdir())
        except OSError:
            return 0

    def output(self) -> str:
        """Returns what the server has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self) -> str:
        """Says how the process ended, and what it printed last; "" while it runs."""
        status = self._process.poll()
        return "" if status is None else f"the server ended with status {status}:\n{self.output()[-3000:]}"

    def output_problem(self) -> str | None:
        """Says what the server should not have printed, or None."""
        printed = self.output()
        if "Traceback" in printed:
            return printed[printed.index("Traceback"):][:3000]
        odd = CONTROL.search(printed)
        return f"printed {odd[0]!r}: {printed[max(0, odd.start() - 100):odd.end() + 50]!r}" if odd else None

    def terminate(self) -> None:
        """Asks the server to finish its answers and end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Waits for the end; returns the exit status, or minus the signal that ended it."""
        try:
            return self._process.wait(STOP_SECONDS)
        finally:
            self._done.set()
            self._process.kill()
