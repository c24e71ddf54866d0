"""Compares patterns with the parts of dotted names: names, shell-style globs, and ranges of layers."""

import re
from fnmatch import fnmatchcase

RANGE = re.compile(r"(\d+)-(\d+)")


def part_matches(pattern: str, part: str) -> bool:
    """Whether one part of a name is what a pattern describes; a range includes both ends."""
    if ends := RANGE.fullmatch(pattern):
        return part.isdigit() and int(ends[1]) <= int(part) <= int(ends[2])
    return fnmatchcase(part, pattern)
