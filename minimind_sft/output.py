"""Standard output and error as every program has them: no character, and no reader that leaves, ends a program."""

import codecs
import errno
import io
import sys
from typing import Any

PLAIN = {"█": "#", "▏": "|", "─": "-", "⟦": "[", "⟧": "]", "‹": "<", "›": ">", "…": "...", "→": "->"}
"""Stand-ins for our own drawing characters where the encoding lacks them."""
ERRORS = "minimind_sft.shown"
READER_LEFT = (errno.EPIPE, errno.EINVAL)
"""EINVAL is what Windows says of a pipe whose other end is closed."""


class _UntilNobodyReads(io.RawIOBase):
    """Writes to `raw` for as long as somebody reads there (`... | head -1`); after that to nowhere.

    The program goes on to its end: it may be about to write files.
    """

    def __init__(self, raw: Any, name: str):
        self._raw, self._name = raw, name

    def write(self, data: Any) -> int | None:
        """
        Raises:
            OSError: with the stream's name, if it cannot be written for another reason, as on a full disk.
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


def prepare_output() -> None:
    """Makes sys.stdout and sys.stderr replace what their encoding lacks, and outlive their reader."""
    codecs.register_error(ERRORS, _replaced)
    sys.stdout = _prepared(sys.stdout, "standard output")
    sys.stderr = _prepared(sys.stderr, "standard error")


def _prepared(stream: Any, name: str) -> Any:
    """`stream` itself where it is no file: none at all, or something that a caller put in its place."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    # `python -u` has no buffer around the file.
    raw: Any = _UntilNobodyReads(getattr(stream.buffer, "raw", stream.buffer), name)
    buffer = io.BufferedWriter(raw) if isinstance(stream.buffer, io.BufferedWriter) else raw
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors=ERRORS, line_buffering=stream.line_buffering,
                            write_through=stream.write_through)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Plain characters in place of our drawing ones, and `\\u4f60` in place of others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start:error.end]
    shown = (PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode("ascii") for one in lacking)
    return "".join(shown), error.end
