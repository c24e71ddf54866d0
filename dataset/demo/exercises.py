"""Questions of every kind with their answers, as plain text for pretraining.

A small model learns a skill only where it is asked for it often. So the pretraining text asks what fine-tuning will
ask, in plain text instead of the chat template, and never what is held out.
"""

from collections.abc import Callable, Iterable

from demo.common import LANGUAGES, Dice, Question, in_documents

ROUNDS = 2
LABELS = {
    "en": {"system": "Instruction: ", "user": "Question: ", "assistant": "Answer: "},
    "zh": {"system": "要求：", "user": "问：", "assistant": "答："},
}


def as_text(question: Question) -> str:
    """The turns of a question, one a line, each behind its label."""
    labels = LABELS[question.language]
    return "\n".join(labels[role] + content for role, content in question.messages)


def pretraining(seed: int, kinds: Iterable[tuple[str, Callable[[Dice, str], list[Question]]]]) -> list[str]:
    """Each round asks everything that is not held out once, lists and tables anew, some of it in each document."""
    kinds, documents = list(kinds), []
    for language in LANGUAGES:
        for number in range(ROUNDS):
            texts = [as_text(question) for name, questions in kinds
                     for question in questions(Dice(seed, f"exercises/{name}/{language}/{number}"), language)
                     if not question.held_out]
            documents += in_documents(Dice(seed, f"exercises/{language}/{number}"), texts, 5, 9)
    return documents
