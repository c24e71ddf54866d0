"""Questions of every kind with their answers, as plain text for pretraining.

A small model learns a skill only where it is asked for it often. So the pretraining text asks what fine-tuning will
ask, in plain text instead of the chat template, and never what is held out.
"""

from collections.abc import Callable, Iterable

from demo import lists
from demo.common import LANGUAGES, Dice, Question, in_documents

DRILLS = 1000
LABELS = {
    "en": {"system": "Instruction:", "user": "Question:", "assistant": "Answer:"},
    "zh": {"system": "要求：", "user": "问：", "assistant": "答："},
}


def as_text(question: Question) -> str:
    """The turns of a question, each on a line of its own below its label, as the chat template will have it: there too
    the first word of a turn follows a line break."""
    labels = LABELS[question.language]
    return "\n".join(f"{labels[role]}\n{content}" for role, content in question.messages)


def pretraining(seed: int, kinds: Iterable[tuple[str, Callable[[Dice, str], list[Question]]]]) -> list[str]:
    """Everything that is not held out, asked once in mixed documents; and lists, each asked all there is."""
    kinds, documents = list(kinds), []
    for language in LANGUAGES:
        texts = [as_text(question) for name, questions in kinds
                 for question in questions(Dice(seed, f"exercises/{name}/{language}"), language)
                 if not question.held_out]
        documents += in_documents(Dice(seed, f"exercises/{language}"), texts, 5, 9)
        for group in lists.drills(Dice(seed, f"drills/{language}"), language, DRILLS):
            texts = [as_text(question) for question in group if not question.held_out]
            if texts:
                documents.append("\n".join(texts))
    return documents
