"""Rows under evaluation made by hand, for tests of what compares two models."""

from minimind_sft.data.conversation import parse_conversation
from minimind_sft.evaluation.items import Item
from minimind_sft.evaluation.questions import Question, Row


def item(answer: str | None, expected: str = "yes", kind: str = "all", number: int = 0, question: str = "Is it so?",
         losses: dict | None = None, **scores: float) -> Item:
    """Returns an item whose answer has the score of an exact match and the given ones."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": expected}]
    place = f"q.jsonl:{number + 1}"
    row = Row(kind, parse_conversation({"messages": messages}, place))
    asked = Question(kind, place, messages[:1], None, [1, 2], expected)
    of_answer = {} if answer is None else {"exact_match": float(answer == expected), **scores}
    return Item("q.jsonl", row, losses, asked, answer, of_answer)


def items(answers: list[str | None], **about) -> list[Item]:
    return [item(answer, number=number, **about) for number, answer in enumerate(answers)]
