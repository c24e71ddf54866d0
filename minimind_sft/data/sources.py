"""What --data_path names: files, globs, and in which proportion they are mixed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minimind_sft.data.reading import exists, find_files
from minimind_sft.errors import UserError


class Source(NamedTuple):
    """Files that are sampled alike; `share` of the samples of an epoch, None where every sample comes once."""

    name: str
    files: list[Path]
    share: float | None


def split_share(text: str) -> tuple[str, str]:
    """`a.jsonl:0.7` is ("a.jsonl", "0.7"); without a share, or where a file has that whole name, (text, "")."""
    match = re.fullmatch(r"(.+):([0-9]{0,9}\.?[0-9]{1,9})", text, re.DOTALL)
    return (match[1], match[2]) if match and not exists(Path(text)) else (text, "")


def find_sources(texts: Sequence[str], flag: str) -> list[Source]:
    """One source of all files, or with shares one for each of `texts`.

    Raises:
        UserError: naming the flag, for files that are not there, and where only some have a share.
    """
    try:
        parts = [(*split_share(text), find_files([split_share(text)[0]])) for text in texts]
    except UserError as error:
        raise UserError(f"{flag} {error}") from error
    shares = [share for _, share, _ in parts]
    if not any(shares):
        files: dict[Path, Path] = {}
        for path in (path for _, _, found in parts for path in found):
            files.setdefault(path.resolve(), path)
        return [Source(", ".join(texts), list(files.values()), None)]
    for name, share, _ in parts:
        if not share:
            raise UserError(f"{flag} {name}: expected a share like those of the others, {name}:0.5")
        if not float(share) > 0:
            raise UserError(f"{flag} {name}: the share is {share}, expected a number above 0")
    seen: dict[Path, str] = {}
    for name, _, found in parts:
        for path in found:
            if path.resolve() in seen:
                raise UserError(f"{flag} {name}: {path} is in {seen[path.resolve()]} already")
            seen[path.resolve()] = name
    return [Source(name, found, float(share)) for name, share, found in parts]
