"""Answers to the same questions before and after a run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from minimind_sft.report.verdict import Outcome
from minimind_sft.terminal import counted

MAX_CHARACTERS = 1000
OPEN = 12
"""Questions that are shown at first, equally many of each fate."""

Fate = Literal["learned", "lost", "wrong", "right", "shown"]
ORDER: tuple[Fate, ...] = ("learned", "lost", "wrong", "right", "shown")
WORDS: dict[Fate, str] = {"learned": "wrong before and right after", "lost": "right before and wrong after",
                          "right": "right both times", "wrong": "wrong both times", "shown": "without a comparison"}


class AnswerPair(NamedTuple):
    """A question with its answers; `before` is None if it was not asked before the run."""

    question: str
    kind: str
    expected: str | None
    before: str | None
    after: str
    was_exact: bool | None
    is_exact: bool | None

    @property
    def fate(self) -> Fate:
        if self.is_exact is None:
            return "shown"
        if self.was_exact is None or self.was_exact == self.is_exact:
            return "right" if self.is_exact else "wrong"
        return "learned" if self.is_exact else "lost"


def answer_pairs(found: Outcome) -> list[AnswerPair]:
    """Returns the questions of the run: those whose answer changed first, the rest in their order."""
    asked = (found.kept or found.before or {}).get("answers") or []
    before = (found.before or {}).get("answers") or [] if found.kept else []
    same = len(before) == len(asked) and all(one["question"] == other["question"]
                                             for one, other in zip(before, asked, strict=True))
    pairs = [_pair(one, before[number] if same else None) for number, one in enumerate(asked)]
    return sorted(pairs, key=lambda one: ORDER.index(one.fate))


def first_shown(pairs: Sequence[AnswerPair]) -> tuple[list[AnswerPair], list[AnswerPair]]:
    """Splits the questions into those that a reader sees at first, and the rest."""
    counts: Counter[Fate] = Counter()
    most = OPEN // max(len({one.fate for one in pairs}), 1)
    shown: list[AnswerPair] = []
    rest: list[AnswerPair] = []
    for one in pairs:
        counts[one.fate] += 1
        (shown if counts[one.fate] <= most else rest).append(one)
    return shown, rest


def summary_of(pairs: Sequence[AnswerPair]) -> str:
    """Counts the questions by what became of them."""
    counts = Counter(one.fate for one in pairs)
    if any(one.before is not None for one in pairs):
        return "; ".join(f"{counts[fate]:,} {WORDS[fate]}" for fate in ORDER if counts[fate])
    words: dict[Fate, str] = {"right": "right", "wrong": "wrong", "shown": WORDS["shown"]}
    return "; ".join(f"{counts[fate]:,} {name}" for fate, name in words.items() if counts[fate])


def _pair(after: dict[str, Any], before: dict[str, Any] | None) -> AnswerPair:
    expected = after.get("expected")
    return AnswerPair(_cut(after["question"]), after.get("kind") or "", None if expected is None else _cut(expected),
                      _cut(before["answer"]) if before else None, _cut(after["answer"]),
                      before.get("exact") if before else None, after.get("exact"))


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} ... ({counted(len(text) - MAX_CHARACTERS, 'more character')})"
