"""Compares patterns with the parts of dotted names: names, shell-style globs, and ranges of layers."""

import re
from fnmatch import fnmatchcase
from itertools import product

RANGE = re.compile(r"(\d+)-(\d+)")


def part_matches(pattern: str, part: str) -> bool:
    """Whether one part of a name is what a pattern describes; a range includes both ends."""
    if ends := RANGE.fullmatch(pattern):
        return part.isdigit() and int(ends[1]) <= int(part) <= int(ends[2])
    return fnmatchcase(part, pattern)


def ends_of(pattern: str) -> list[str]:
    """Returns a pattern of several parts with its ranges replaced by their ends; one without a range as it is.

    For `layers.0-5.mlp` that is `layers.0.mlp` and `layers.5.mlp`.
    """
    parts = [(part, RANGE.fullmatch(part)) for part in pattern.split(".")]
    choices = [[str(int(end)) for end in ends.groups()] if ends else [part] for part, ends in parts]
    return list(map(".".join, product(*choices)))
