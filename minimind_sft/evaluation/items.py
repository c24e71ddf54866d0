"""Items of an evaluation: the rows under evaluation, with what was measured on each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minimind_sft.evaluation.questions import Question, Row


@dataclass
class Item:
    """A row under evaluation.

    source: the file it comes from.
    losses: sums over its supervised tokens (`conversations.measure_losses`); None if it could not be encoded.
    question: None if no answers are wanted.
    answer: the model's answer without reasoning; None if the question has a problem.
    scores: of the answer, each from 0 to 1, by name (`scores.answer_scores`).
    problem: why it has no losses or no answer.
    """

    source: str
    row: Row
    losses: dict[str, Any] | None = None
    question: Question | None = None
    answer: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def expected_message(self) -> dict:
        """The row's last assistant turn, which answers its question."""
        return next(message for message in reversed(self.row.conversation.messages) if message["role"] == "assistant")


def kind_of(item: Item) -> str:
    return item.row.kind


def source_of(item: Item) -> str:
    return item.source


def grouped(items: Sequence[Item], group_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Groups the items; the groups are sorted by name."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    return dict(sorted(groups.items()))
