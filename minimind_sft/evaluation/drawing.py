"""Draws the questions that a model answers while it trains, from the samples of its evaluation set.

The samples hold the ids that training would see, so the prompts are those of a chat. A sample of running text has no
question: its beginning is the prompt, which the model continues.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.dataset import Samples
from minimind_sft.data.example import Example
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.evaluation.questions import without_reasoning
from minimind_sft.inference.stopping import chat_stop_ids, document_end_ids
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.settings.evaluation import EvaluationSettings

DRAW = 0x5A3D
"""Seed of the draw. It is the same in all runs, so that their answers can be compared."""
MAX_BEGINNING = 32
"""Tokens of running text that the model continues, or half of the text if that is less."""


@dataclass(frozen=True)
class SampleQuestion:
    """A question from a sample.

    prompt: the ids before the answer.
    text: the question as a person reads it.
    expected: the answer's text; None if the sample has none, or only its beginning.
    tokens: the length of the expected answer, without the token that ends it.
    """

    kind: str
    prompt: list[int]
    text: str
    expected: str | None
    tokens: int

    def can_be_compared(self, max_new_tokens: int) -> bool:
        """Whether there is an expected answer that so many tokens have room for."""
        return self.expected is not None and self.tokens <= max_new_tokens


@dataclass(frozen=True)
class DrawnQuestions:
    """Questions, and what turns the model's ids into answers."""

    questions: Sequence[SampleQuestion]
    tokenizer: Tokenizer
    stop_ids: frozenset[int]


def draw_questions(samples: Samples, settings: EvaluationSettings, context: int, tokenizer: Tokenizer,
                   template: ChatTemplate | None) -> DrawnQuestions:
    """Draws at most `--eval_samples` questions, the same ones in every run over these samples.

    Args:
        context: the model's; samples whose prompt leaves no room in it are passed over.
        template: None if the samples are running text.
    """
    count = settings.eval_samples
    reader = _Reader(tokenizer, template)
    drawn: list[SampleQuestion] = []
    for index in np.random.default_rng(DRAW).permutation(len(samples)) if count else ():
        if len(drawn) == count:
            break
        kind = samples.groups[samples.group_of(index)].kind
        question = reader.question(samples[index][-1], kind)
        if 0 < len(question.prompt) < context:
            drawn.append(question)
    stop_ids = chat_stop_ids(template) if template else document_end_ids(tokenizer)
    return DrawnQuestions(drawn, tokenizer, frozenset(stop_ids))


class _Reader:
    """Reads questions from Examples."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None):
        self.tokenizer = tokenizer
        self.end_id = template.end_of_turn_id if template else None
        self.frame = _Frame(template) if template else None

    def question(self, example: Example, kind: str) -> SampleQuestion:
        """Returns the question that the last supervised stretch of the Example answers."""
        supervised = example.labels != IGNORE_INDEX
        last = int(np.flatnonzero(supervised)[-1])
        before = np.flatnonzero(~supervised[:last])
        start = int(before[-1]) + 1 if len(before) else 0
        if start == 0 or self.frame is None:
            beginning = example.input_ids[:min(MAX_BEGINNING, -(-len(example.input_ids) // 2))].tolist()
            return SampleQuestion(kind, beginning, self.tokenizer.decode(beginning), None, 0)
        prompt, answer = example.input_ids[:start + 1].tolist(), example.labels[start:last + 1].tolist()
        expected = None
        if answer[-1] == self.end_id:
            answer.pop()
            expected = without_reasoning(self.tokenizer.decode(answer)) or None
        return SampleQuestion(kind, prompt, self.frame.question_in(self.tokenizer.decode(prompt)), expected,
                              len(answer))


class _Frame:
    """Text that a chat template writes before and after a user's question; people need not read it."""

    def __init__(self, template: ChatTemplate):
        first, answer, question = "First question", "First answer", "Second question"
        messages = [{"role": "user", "content": first}, {"role": "assistant", "content": answer},
                    {"role": "user", "content": question}]
        self.header, self.footers = "", []
        for thinking in (False, True):
            try:
                rendered = template.render(messages, add_generation_prompt=True, thinking=thinking)
            except UserError:
                continue  # the text is shown as it is
            _, _, rest = rendered.partition(answer)
            between, _, footer = rest.partition(question)
            self.header = between.replace(template.end_of_turn, "").strip()
            self.footers.append(footer)

    def question_in(self, prompt: str) -> str:
        """Returns the last question in the text of a prompt."""
        for footer in self.footers:
            prompt = prompt.removesuffix(footer)
        return (prompt.rpartition(self.header)[2] if self.header else prompt).strip()
