"""Shared by all kinds: reproducible chance, the hold-out rule and the shape of one SFT row."""

import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

LANGUAGES = ("en", "zh")
HELD_OUT_ONE_IN = 10


class Dice:
    """Chance that gives the same bytes under every Python version.

    Only `Random.random()` of the standard library promises that; its choice, sample and shuffle do not.
    Each name has its own stream, so that a change to one kind leaves the others as they were.
    """

    def __init__(self, seed: int, name: str):
        self._random = random.Random(zlib.crc32(f"{seed}/{name}".encode())).random

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different places of `items`, in random order."""
        pool, result = list(items), []
        for _ in range(count):
            result.append(pool.pop(self.below(len(pool))))
        return result


def held_out(task: str, unit: str, one_in: int = HELD_OUT_ONE_IN) -> bool:
    """Whether the content `unit` is kept out of SFT training: a pure function, whatever the seed.

    Pretraining text and SFT rows ask the same function, so neither can teach what the other holds out.
    """
    return zlib.crc32(f"{task}/{unit}".encode()) % one_in == 0


def wording_apart(task: str, unit: str, wordings: int) -> int | None:
    """Which of the wordings of a question about `unit` is kept apart, in every second case; else None."""
    return zlib.crc32(f"wording/{unit}".encode()) % wordings if held_out(task, unit, one_in=2) else None


@dataclass(frozen=True)
class Question:
    """One SFT row. `messages` are (role, content) pairs; the last is the assistant's reference answer."""

    kind: str
    task: str
    language: str
    messages: tuple[tuple[str, str], ...]
    held_out: bool
    reasoning: str = ""


def ask(question: str, answer: str) -> tuple[tuple[str, str], ...]:
    """The messages of a single exchange."""
    return (("user", question), ("assistant", answer))


def it_is(value: object, language: str) -> str:
    """The answer as a sentence. An English word then follows a space, as it does in most places where it is read:
    to the tokenizer a word with its space and the same word without are two different tokens."""
    return f"It is {value}." if language == "en" else f"{value}。"


def in_documents(dice: Dice, lines: Iterable[str], low: int, high: int, joint: str = "\n") -> list[str]:
    """The lines in random order, low to high of them joined into each document."""
    rest, documents = dice.shuffled(lines), []
    while rest:
        count = dice.between(low, high)
        documents.append(joint.join(rest[:count]))
        rest = rest[count:]
    return documents


def sentence(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]
