"""Names for metrics files where several are shown together."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.report.run_files import SUFFIX


def run_names(paths: Sequence[Path]) -> list[str]:
    """Names the runs of metrics files: by the file alone, and with as many folders as tell equal files apart.

    Raises:
        UserError: if a file is there twice.
    """
    for path, times in Counter(path.absolute() for path in paths).items():
        if times > 1:
            raise UserError(f"{path}: given {times} times")
    parts = [(*path.absolute().parts[1:-1], path.name.removesuffix(SUFFIX)) for path in paths]
    shown = [1] * len(paths)
    while True:
        names = ["/".join(one[-count:]) for one, count in zip(parts, shown, strict=True)]
        equal = Counter(names)
        grown = [min(count + (equal[name] > 1), len(one))
                 for one, count, name in zip(parts, shown, names, strict=True)]
        if grown == shown:
            return names
        shown = grown
