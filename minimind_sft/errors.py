"""User mistakes, told in one line, and the loss of another process; how programs end."""

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
from typing import NoReturn

from minimind_sft.output import prepare_output
from minimind_sft.terminal import fitted

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that takes no more data."""
CONSEQUENCE_SECONDS = 60


class UserError(ValueError):
    """A mistake in what the user gave (a file, a line, a field, a flag).

    Its message is complete by itself: it names the place and says what would be right. Programs print it as it is,
    without a traceback, and exit with status 2 (`run_program`).
    """


class ProcessLost(RuntimeError):
    """Another process of this run failed or can no longer be reached; the resume state is where to go on."""


def run_program(main: Callable[[], int | None]) -> None:
    """Runs a command-line program; a person reads one line on stderr instead of a traceback.

    Exit status: 2 for a `UserError` and a full disk, 1 for a `ProcessLost`, 130 for Ctrl-C, 143 for SIGTERM.
    """
    prepare_output()
    signal.signal(signal.SIGTERM, _leave)  # tidily, as after Ctrl-C
    try:
        status = main()
    except UserError as error:
        status = _report(2, f"error: {error}")
    except ProcessLost as error:
        status = _report(1, f"error: {error}; --from_resume 1 goes on from the last resume state")
    except KeyboardInterrupt:
        status = _report(130, "interrupted")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        status = _report(2, f"error: {_cannot_write(error)}")
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno in NO_ROOM and not status:
            status = _report(2, f"error: {_cannot_write(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain on its way out
    if status and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Gloo's threads still run if the ranks have not parted, and may abort the process on a regular way out: its
        # exit status would be that of SIGABRT.
        os._exit(status)
    sys.exit(status or 0)


def harmless(message: str) -> str:
    """A message without what would move a terminal's cursor or turn its writing round: data can put that there."""
    return re.sub("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]",
                  lambda found: f"\\u{ord(found[0]):04x}", message)


def on_one_line(name: str) -> str:
    """A name out of a file as it stands there, but for line ends and other characters that cannot be seen."""
    return repr(name)[1:-1]


def _report(status: int, message: str) -> int:
    """Prints the line that a person should read, gives it to torchrun as well, and returns `status`."""
    message = harmless(message)
    rank = int(os.environ.get("RANK", 0))
    print(fitted(f"[rank {rank}] {message}" if rank else message, sys.stderr), file=sys.stderr)
    if message.startswith("error: "):
        _tell_torchrun(message, time.time() + CONSEQUENCE_SECONDS * (status == 1))
    return status


def _tell_torchrun(message: str, at: float) -> None:
    """Has torchrun show `message` in its own report, which comes after all that the ranks have printed.

    The file and its form are those of torch.distributed.elastic.multiprocessing.errors. Torchrun calls the earliest
    failure the cause: a rank that only lost another one dates its own later.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    record = {"message": {"message": message, "extraInfo": {"timestamp": str(int(at))}}}
    with suppress(OSError):  # on a full disk the printed line is what there is
        Path(path).write_text(json.dumps(record), encoding="utf-8")


def _cannot_write(error: OSError) -> str:
    return f"{error.filename or 'a file'}: cannot be written ({error.strerror})"


def _leave(signum: int, _: object) -> NoReturn:
    sys.exit(128 + signum)
