"""Numbers in environment variables, as torchrun sets them."""

import os
import re

from minimind_sft.errors import UserError

MAX_NUMBER = 10**6


def number_in_environment(name: str, default: int, min: int = 0, max: int = MAX_NUMBER) -> int:
    """Returns the whole number that an environment variable holds, or `default` if it is not set.

    Raises:
        UserError: if it holds something else, or a number outside the range.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not min <= int(text) <= max:
        raise UserError(f"environment variable {name}: expected a number from {min} to {max:,}, found {text[:40]!r}; "
                        "torchrun sets it, and a run without torchrun needs none")
    return int(text)
