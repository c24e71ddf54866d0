"""What a user can do wrong, told in one line."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in what the user gave (a file, a line, a field, a flag).

    Its message is complete by itself: it names the place and says what would be right. Programs print it as it is,
    without a traceback, and exit with status 2 (`run_program`).
    """


def run_program(main: Callable[[], int | None]) -> None:
    """Runs a command-line program; a `UserError` becomes `error: <message>` on stderr and exit status 2."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status or 0)
