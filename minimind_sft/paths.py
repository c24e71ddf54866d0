"""Names files in messages and in commands to paste."""

import os
import sys
from pathlib import Path

from minimind_sft.terminal import in_one_line


def find_clone() -> Path | None:
    """Finds the clone of this repository in use; None where the installed library is used on its own.

    The library lies in its clone unless it was installed without `-e`. The clone is then where the running program is
    (eval_llm.py, or one folder deeper trainer/train_full_sft.py), or the working directory.
    """
    program = Path(sys.argv[0]).resolve()
    for folder in (Path(__file__).resolve().parent.parent, program.parent, program.parent.parent, Path.cwd()):
        if (folder / "scripts/inspect_data.py").is_file():  # MiniMind's clones have trainer/ and model/, too
            return folder
    return None


CLONE = find_clone()
REPOSITORY = CLONE or Path.cwd()
"""Where default paths lie: the clone, or without one the working directory."""


def in_repository(path: str) -> str:
    """Returns the absolute path of a file of the repository, named from its root."""
    return str(REPOSITORY / path)


def shown(path: str | Path) -> str:
    """Names a path in a message, on one line: a path inside the repository relative to its root."""
    absolute = _absolute(path)
    return in_one_line(str(absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else path))


def place(value: str | Path) -> str:
    """Names a file for a command in the working directory: relative to it if both are in the repository.

    A value that is not a file, such as the name of a template, stays unchanged.
    """
    path = _absolute(value)
    if not path.exists():
        return str(value)
    inside = path.is_relative_to(REPOSITORY) and Path.cwd().is_relative_to(REPOSITORY)
    return os.path.relpath(path) if inside else str(path)


def program(name: str) -> str:
    """Names one of the repository's programs for a command in the working directory."""
    return place(REPOSITORY / name)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))  # without the `..` of a path typed in trainer/
