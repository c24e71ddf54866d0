"""Sets up standard output and error: neither an odd character nor a reader that leaves ends a program.

Nor do control characters get through that libraries print: warnings, log lines and tracebacks quote data and names.
"""

import codecs
import errno
import io
import sys
from typing import Any

from minimind_sft.terminal import harmless

PLAIN = {"█": "#", "▏": "|", "─": "-", "⟦": "[", "⟧": "]", "‹": "<", "›": ">", "…": "...", "→": "->"}
"""Replacements for our drawing characters in encodings that lack them."""
ERRORS = "minimind_sft.shown"
READER_LEFT = (errno.EPIPE, errno.EINVAL)
"""Windows reports EINVAL for a pipe whose other end is closed."""


class _OutlivesReader(io.RawIOBase):
    """Writes to `raw` as long as somebody reads it (`... | head -1`), and nowhere after that.

    A broken pipe must not end the program, which may be about to write files.
    """

    def __init__(self, raw: Any, name: str):
        self._raw, self._name = raw, name

    def write(self, data: Any) -> int | None:
        """Writes, or pretends to if the reader has left.

        Raises:
            OSError: with the stream's name, if it cannot be written for another reason, such as a full disk.
        """
        try:
            return self._raw.write(data)
        except OSError as error:
            if error.errno in READER_LEFT:
                return len(data)
            raise OSError(error.errno, error.strerror, self._name) from error

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()


class _Harmless(io.TextIOWrapper):
    """Escapes control characters, except tabs and the carriage returns of progress bars."""

    def write(self, text: str) -> int:
        return super().write("\t".join("\r".join(map(harmless, part.split("\r"))) for part in text.split("\t")))

    def write_harmless(self, text: str) -> int:
        """Writes text of `terminal.py`, which has escaped it and may have coloured it."""
        return super().write(text)


def prepare_output() -> None:
    """Makes sys.stdout and sys.stderr escape control characters and those their encoding lacks, and outlive readers."""
    codecs.register_error(ERRORS, _replaced)
    sys.stdout = _prepared(sys.stdout, "standard output")
    sys.stderr = _prepared(sys.stderr, "standard error")


def _prepared(stream: Any, name: str) -> Any:
    """Wraps a stream; returns None, or an object that a caller put in its place, unchanged."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw: Any = _OutlivesReader(getattr(stream.buffer, "raw", stream.buffer), name)  # `python -u` has no buffer
    buffer = io.BufferedWriter(raw) if isinstance(stream.buffer, io.BufferedWriter) else raw
    return _Harmless(buffer, encoding=stream.encoding, errors=ERRORS, line_buffering=stream.line_buffering,
                     write_through=stream.write_through)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Returns plain characters for our drawing characters, and escapes such as `\\u4f60` for others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start:error.end]
    shown = (PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode("ascii") for one in lacking)
    return "".join(shown), error.end
