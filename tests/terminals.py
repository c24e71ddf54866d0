"""A program in a pseudo-terminal, typed into as a user does."""

import codecs
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 600
"""Seconds after which a program counts as hanging."""


class Terminal:
    """Runs `command` in a terminal of `columns` columns; `shown` is its output that is not read yet."""

    def __init__(self, command: list[str], columns: int = 80, **environment: str):
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull,
                       "PYTHONDONTWRITEBYTECODE": "1", **environment}
        environment.pop("COLUMNS", None)

        def take_terminal() -> None:  # Ctrl-C reaches the program only if the terminal is its controlling one
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment,
                                        preexec_fn=take_terminal)
        self.slave = slave
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a character

    def type(self, text: str | bytes) -> None:
        rest = text if isinstance(text, bytes) else text.encode()
        while rest:
            rest = rest[os.write(self._master, rest):]

    def interrupt(self) -> None:
        """Presses Ctrl-C once the program waits for input; Python misses one that comes just before."""
        until = time.monotonic() + SECONDS
        while not self._sleeps():
            assert time.monotonic() < until, "the program is busy"
            time.sleep(0.05)
        self.type("\x03")

    def paste(self, text: str) -> None:
        """Pastes like a terminal in bracketed-paste mode: line ends become carriage returns."""
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def wait_for(self, text: str) -> str:
        """Returns the output before the next `text` and removes both from `shown`."""
        until = time.monotonic() + SECONDS
        while text not in self.shown:
            assert time.monotonic() < until, f"no {text!r} in {self.shown!r}"
            if not self._read():
                break
        before, found, self.shown = self.shown.partition(text)
        assert found, f"the program ended without {text!r}: {before!r}"
        return before

    def end(self) -> int:
        """Waits for the program to end and returns its exit status; `shown` has the rest of the output."""
        until = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < until, f"the program does not end: {self.shown!r}"
        return self.process.wait(SECONDS)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._master)
        os.close(self.slave)

    def unread(self) -> bytes:
        """Returns typed input that no program has read; the shell would get it."""
        import fcntl
        import termios

        waiting = int.from_bytes(fcntl.ioctl(self.slave, termios.FIONREAD, b"\0" * 4), sys.byteorder)
        return os.read(self.slave, waiting) if waiting else b""

    def _sleeps(self) -> bool:
        """Tells whether all threads of the program sleep: one that has work to do may be waited for by another."""
        threads = Path(f"/proc/{self.process.pid}/task")
        if not threads.exists():  # not Linux
            time.sleep(1)
            return True
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile
            return {state.read_text().rpartition(")")[2].split()[0] for state in threads.glob("*/stat")} == {"S"}
        return False

    def _read(self) -> bool:
        """Reads output that comes within 0.2 seconds; returns False once the program has ended and all is read."""
        had_ended = self.process.poll() is not None  # before a look that finds nothing: it may print, and then end
        if not select.select([self._master], [], [], 0.2)[0]:
            return not had_ended
        self.shown += self._decoder.decode(os.read(self._master, 65536))
        return True
