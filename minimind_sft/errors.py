"""What a user can do wrong, told in one line; and what ends a training from outside."""

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """A mistake in what the user gave (a file, a line, a field, a flag).

    Its message is complete by itself: it names the place and says what would be right. Programs print it as it is,
    without a traceback, and exit with status 2 (`run_program`).
    """


class ProcessLost(RuntimeError):
    """Another process of this training failed or can no longer be reached; the resume state is where to go on."""


def run_program(main: Callable[[], int | None]) -> None:
    """Runs a command-line program; what a person should read is one line on stderr, without a traceback.

    Exit status: 2 for a `UserError`, 1 for a `ProcessLost`, 130 for Ctrl-C, 143 for SIGTERM.
    """
    signal.signal(signal.SIGTERM, _leave)  # tidily, as after Ctrl-C
    rank = int(os.environ.get("RANK", 0))
    prefix = f"[rank {rank}] " if rank else ""
    try:
        status = main()
    except UserError as error:
        print(f"{prefix}error: {harmless(str(error))}", file=sys.stderr)
        status = 2
    except ProcessLost as error:
        print(f"{prefix}error: {error}; --from_resume 1 goes on from the last resume state", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print(f"{prefix}interrupted", file=sys.stderr)
        status = 130
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads any more; Python would complain on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status or 0)


def harmless(message: str) -> str:
    """A message without what would move a terminal's cursor or turn its writing round: data can put that there."""
    return re.sub("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]",
                  lambda found: f"\\u{ord(found[0]):04x}", message)


def _leave(signum: int, _: object) -> NoReturn:
    sys.exit(128 + signum)
