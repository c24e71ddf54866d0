"""Errors that a person reads as one line, how values look in them, and how programs end."""

import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from minimind_sft.output import prepare_output
from minimind_sft.terminal import harmless, say

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that accepts no more data."""
UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
"""Errors of a path that cannot be used at all, wherever a program notices."""
MAX_PATH = 200
"""Characters of such a path that an error shows."""
CONSEQUENCE_SECONDS = 60
"""A rank that only lost another one dates its failure this much later, so that torchrun shows the cause."""
CAUSE_SECONDS = 20
"""How long such a rank lets the failed one end first."""
MAX_SHOWN = 40
NEXT_PROBLEM = " " * len("error: ")
"""The indent of further lines of a `UserError`; other line feeds are not ours, but those of a file's name, say."""


class UserError(ValueError):
    """A mistake in the user's input: a file, a line, a field or a flag.

    Its message stands alone: it names the place and says what would be right. Programs print it without a traceback
    and exit with status 2 (`run_program`).
    """


class ProcessLost(RuntimeError):
    """Another process of this run failed or cannot be reached; the run can go on from its resume state."""


class OtherRankFailed(ProcessLost):
    """Another rank has failed, which says why itself."""


def run_program(main: Callable[[], int | None]) -> None:
    """Runs a command-line program and prints one line on stderr instead of a traceback.

    Exit status: 2 for a `UserError` and a full disk, 1 for a `ProcessLost`, 130 for Ctrl-C, 143 for SIGTERM.
    """
    prepare_output()
    signal.signal(signal.SIGTERM, _leave)  # unwinds the stack, as Ctrl-C does
    try:
        status = main()
    except UserError as error:
        status = _report(2, f"error: {error}")
    except ProcessLost as error:
        status = _report(1, f"error: {error}; --from_resume 1 continues from the last resume state")
        if isinstance(error, OtherRankFailed):
            _let_the_cause_end_first()
    except KeyboardInterrupt:
        status = _report(130, "interrupted")
    except OSError as error:
        if error.errno in UNUSABLE and error.filename is not None:
            status = _report(2, f"error: {str(error.filename)[:MAX_PATH]}: cannot be used ({error.strerror})")
        elif error.errno in NO_ROOM:
            status = _report(2, f"error: {_cannot_write(error)}")
        else:
            raise
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno in NO_ROOM and not status:
            status = _report(2, f"error: {_cannot_write(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
    if _set_by_torchrun("WORLD_SIZE", 1) > 1:
        # Gloo's threads may still run, even after a run that succeeded. During a regular exit they can abort the
        # process, which would then exit with the status of SIGABRT.
        os._exit(status or 0)
    sys.exit(status or 0)


def describe(value: Any) -> str:
    """Describes a JSON value in an error message: its kind, and itself where that is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def rust_failures() -> tuple[type[BaseException], ...]:
    """Returns what libraries written in Rust raise, to be named after `except`: exceptions and panics.

    Each library has its own class for panics, made when it first panics and derived from BaseException alone.
    """
    return (Exception, *(kind for kind in BaseException.__subclasses__() if kind.__name__ == "PanicException"))


def one_line(error: BaseException) -> str:
    """Returns an error's whole message on one line, or the error's type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(name: str) -> str:
    """Returns a name from a file with line ends and other invisible characters escaped."""
    return repr(name)[1:-1]


def _report(status: int, message: str) -> int:
    """Prints the message, passes errors on to torchrun, and returns `status`."""
    message = re.sub(f"\n(?!{NEXT_PROBLEM})", r"\\n", harmless(message))
    rank = _set_by_torchrun("RANK", 0)
    say(f"[rank {rank}] {message}" if rank else message, sys.stderr)
    if message.startswith("error: "):
        _report_to_torchrun(message, time.time() + CONSEQUENCE_SECONDS * (status == 1))
    return status


def _report_to_torchrun(message: str, at: float) -> None:
    """Makes torchrun repeat `message` in its own report, which comes after everything that the ranks print.

    File and format are those of torch.distributed.elastic.multiprocessing.errors. Torchrun takes the earliest failure
    for the cause.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    record = {"message": {"message": message, "extraInfo": {"timestamp": str(int(at))}}}
    with suppress(OSError):  # on a full disk the printed line has to do
        Path(path).write_text(json.dumps(record), encoding="utf-8")


def _let_the_cause_end_first() -> None:
    """Waits for torchrun to end this process, as it does once the rank has ended that says why; not for ever.

    Torchrun ends all other ranks as soon as the first has ended: that one could not say anything any more.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: os._exit(1))
        time.sleep(CAUSE_SECONDS)


def _set_by_torchrun(name: str, default: int) -> int:
    """Returns the number in an environment variable, or `default` if it is none: the trainers have said so."""
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else default


def _cannot_write(error: OSError) -> str:
    return f"{error.filename or 'a file'}: cannot be written ({error.strerror})"


def _leave(signum: int, _: object) -> NoReturn:
    sys.exit(128 + signum)
