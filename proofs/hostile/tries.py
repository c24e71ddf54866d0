"""Tries of hostile inputs, their outcomes, and how these are judged.

A module of this folder names its kind in plain words in `KIND` and has

    def tries(folder: Path, random: random.Random, count: int) -> Iterator[Try]

which writes the files of each try under `folder` just before it yields it. The first try of a kind is good input, which
must be accepted.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RIGHT = ("refused", "accepted")
WRONG = ("traceback", "timeout", "crash", "memory", "silent", "escape", "damaged", "wrongly refused", "no clear line")
"""Outcomes, from which `judge` chooses."""

SECONDS, MEMORY_MIB = 20.0, 500
"""Limits of a try, unless it has its own. The memory is what the program takes beyond its imports."""

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor or reverse its text. Progress bars write carriage returns."""
ERROR = re.compile(r"^(?:\[rank \d+\] )?(?:[\w.]+: )?error: ", re.MULTILINE)

INSPECTOR, FAULTS = "inspect_data.py", 1
"""A program that has done its work when it exits with this status: its report says what is wrong with the data."""


@dataclass(frozen=True)
class Outcome:
    """The end of a program: its status, output, time and memory.

    Attributes:
        status: exit status, or minus the signal that ended the process; None if it ran into the time limit.
        memory_mib: peak resident memory beyond that of a process that has only imported the programs.
    """

    status: int | None
    stdout: str
    stderr: str
    seconds: float
    memory_mib: float
    folder: Path


@dataclass(frozen=True)
class Try:
    """One hostile input, and the command that reads it.

    Attributes:
        command: a program's path relative to the project, and its flags.
        expected: "refused", "accepted", or "either": refused in one line, or accepted with nothing for `check` to find.
        check: returns what is wrong with the outcome of a program that exited with status 0, or None.
        guarded: files, folders and links that may neither change nor vanish nor, if they are absent, appear.
    """

    name: str
    command: Sequence[str]
    expected: str = "refused"
    stdin: str = ""
    check: Callable[[Outcome], str | None] | None = None
    seconds: float = SECONDS
    memory_mib: int = MEMORY_MIB
    environment: Mapping[str, str] = field(default_factory=dict)
    guarded: Sequence[Path] = ()


def judge(one: Try, outcome: Outcome, damaged: Sequence[Path]) -> tuple[str, str]:
    """Returns what came of a try, as one of `RIGHT` and `WRONG`, and what shows it."""
    last = (outcome.stderr.strip().splitlines() or [""])[-1]
    if damaged:
        return "damaged", ", ".join(map(str, damaged))
    if outcome.status is None:
        return "timeout", f"after {outcome.seconds:.0f} s"
    if "Traceback (most recent call last)" in outcome.stderr:
        return "traceback", last
    if outcome.memory_mib > one.memory_mib:
        return "memory", f"{outcome.memory_mib:.0f} MiB"
    if outcome.status < 0:
        return "crash", f"signal {-outcome.status}"
    odd = CONTROL.search(outcome.stdout + outcome.stderr)
    if odd:
        return "escape", repr(odd[0])
    if outcome.status == 0 or (outcome.status == FAULTS and INSPECTOR in one.command[0] and not outcome.stderr):
        wrong = one.check(outcome) if one.check else None
        return ("silent", wrong or "accepted") if wrong or one.expected == "refused" else ("accepted", "")
    if len(ERROR.findall(outcome.stderr)) != 1:
        return "no clear line", last
    return ("wrongly refused" if one.expected == "accepted" else "refused"), last


def state_of(path: Path) -> str:
    """Describes a file, a folder with all that is in it, a link or nothing, so that any change shows."""
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if path.is_dir():
        return repr(sorted((child.name, state_of(child)) for child in path.iterdir()))
    return "something else" if path.exists() else "nothing"
