"""Evaluates a model while it trains: losses by file and kind, and answers to a few fixed questions.

Nothing here changes training: no random number is drawn and no gradient computed. Answers come from a copy of the
weights, as a chat will load them; only a sharded model answers itself.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from minimind_sft.data.batching import EvaluationBatches
from minimind_sft.errors import UserError
from minimind_sft.evaluation.answering import shortened
from minimind_sft.evaluation.decodable import answer_in_step, as_saved
from minimind_sft.evaluation.drawing import DrawnQuestions, SampleQuestion
from minimind_sft.evaluation.losses import TokenScore, ValidationLoss, group_sums, summarized
from minimind_sft.evaluation.questions import without_reasoning
from minimind_sft.inference.generate import generate_greedily
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.inference.request import Request
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.training import TrainSettings
from minimind_sft.terminal import counted

T = TypeVar("T")

ANSWERED_AT_ONCE = 32
SHOWN_COLUMNS = 50
"""Of a question or an answer in the terminal."""


class Team(Protocol):
    """The processes that train together (`training.distributed.Ranks`)."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, *values: float) -> list[float]:
        """Sums each value over the ranks."""

    def on_each(self, action: Callable[[], T]) -> list[T]:
        """Returns the results of `action` on all ranks; if it fails on one, all of them stop."""


@dataclass(frozen=True)
class Answer:
    """The model's answer to a question.

    expected: the answer in the data; None if they hold none to compare with.
    exact: whether the two are equal; None if they cannot be compared.
    """

    kind: str
    question: str
    expected: str | None
    answer: str
    exact: bool | None


@dataclass(frozen=True)
class Evaluation:
    """The scores of the weights at one step of a run."""

    losses: ValidationLoss
    answers: Sequence[Answer] = ()

    @property
    def loss(self) -> float:
        return self.losses.loss

    @property
    def exact_match(self) -> float | None:
        """The share of exact answers among those that can be compared; None if there are none."""
        compared = [answer.exact for answer in self.answers if answer.exact is not None]
        return sum(compared) / len(compared) if compared else None

    @property
    def exact_by_kind(self) -> dict[str, list[int]]:
        """The exact answers of each kind and the compared ones, {kind: [right, asked]}."""
        compared = [answer for answer in self.answers if answer.exact is not None]
        asked = Counter(answer.kind for answer in compared)
        right = Counter(answer.kind for answer in compared if answer.exact)
        return {kind: [right[kind], asked[kind]] for kind in asked}

    def lines(self) -> list[str]:
        """Returns the scores in a few words and one of the answers, for the terminal."""
        perplexity = self.losses.perplexity
        words = (f"validation loss {self.loss:.4f}, perplexity {perplexity:{'.2f' if perplexity < 1e6 else '.2e'}}, "
                 f"token accuracy {self.losses.token_accuracy:.1%}")
        if self.exact_match is not None:
            right, asked = (sum(column) for column in zip(*self.exact_by_kind.values(), strict=True))
            words += f", exact match {right} of {asked}"
        return [words, *(self._shown(answer) for answer in self.answers[:1])]

    def _shown(self, answer: Answer) -> str:
        """Returns a question and its answer on one line."""
        verdict = {None: "", True: " (right)", False: f" (expected {_quoted(answer.expected or '')})"}[answer.exact]
        return f"{_quoted(answer.question)} -> {_quoted(answer.answer)}{verdict}"

    def metrics(self) -> dict[str, Any]:
        """Returns the values of the evaluation's line in the metrics file."""
        losses = self.losses
        values = {"eval_loss": losses.loss, "perplexity": losses.perplexity, "token_accuracy": losses.token_accuracy,
                  "eval_tokens": losses.tokens, "by_source": _by_name(losses.by_source),
                  "by_kind": _by_name(losses.by_kind)}
        if self.answers:
            values |= {"exact_match": self.exact_match, "exact_by_kind": self.exact_by_kind,
                       "answers": [asdict(answer) for answer in self.answers]}
        return values


class Evaluator:
    """Evaluates the weights as they are at each call; all ranks call it together.

    The model is left in evaluation mode.

    Args:
        batches: this rank's share of the evaluation set.
        questions: those that the model answers; the ranks share them out.
        dtype: the precision of matrix products.

    Raises:
        UserError: if the best weights are to be chosen by answers, and there is nothing to compare them with.
    """

    def __init__(self, model: MiniMindForCausalLM, batches: EvaluationBatches, questions: DrawnQuestions,
                 settings: TrainSettings, dtype: torch.dtype, team: Team):
        limit = settings.evaluation.eval_max_new_tokens
        if settings.evaluation.best_by == "exact_match" and not any(
                question.can_be_compared(limit) for question in questions.questions):
            raise UserError(f"--best_by exact_match: none of the "
                            f"{counted(len(questions.questions), 'question')} drawn from the evaluation set has an "
                            f"answer to compare, whole and of at most {counted(limit, 'token')} "
                            "(--eval_max_new_tokens)")
        self._model, self._batches, self._questions, self._dtype, self._team = model, batches, questions, dtype, team
        self._sampling = SamplingSettings(max_new_tokens=limit)
        self._save_dtype = getattr(torch, settings.saving.save_dtype)

    def __call__(self) -> Evaluation:
        return Evaluation(self._losses(), self._answers() if self._questions.questions else ())

    def _losses(self) -> ValidationLoss:
        measure = partial(group_sums, self._model, self._batches, self._team.device, self._dtype)
        if isinstance(self._model, FSDPModule):  # a rank that fails must not wait for others that wait for its weights
            own = measure()
            sums = np.reshape(self._team.sum(*own.ravel().tolist()), own.shape)
        else:
            sums = np.sum(self._team.on_each(measure), axis=0)
        return summarized(sums, self._batches.dataset.groups)

    def _answers(self) -> list[Answer]:
        questions, team = self._questions.questions, self._team
        own = questions[team.rank::team.world_size]
        if isinstance(self._model, FSDPModule):
            share = -(-len(questions) // team.world_size)
            texts = self._answer_in_step(own, share)
            shares = team.on_each(lambda: texts)
        else:
            shares = team.on_each(partial(self._answer, own))
        return [self._compared(question, shares[index % team.world_size][index // team.world_size])
                for index, question in enumerate(questions)]

    def _compared(self, question: SampleQuestion, text: str) -> Answer:
        comparable = question.can_be_compared(self._sampling.max_new_tokens)
        return Answer(question.kind, question.text, question.expected, text,
                      text == question.expected if comparable else None)

    def _answer(self, questions: Sequence[SampleQuestion]) -> list[str]:
        if not questions:
            return []
        model = ready_to_decode(as_saved(self._model, self._save_dtype))
        return [self._text(ids) for batch in _in_batches(questions) for ids in generate_greedily(
            model, [question.prompt for question in batch], self._sampling, self._questions.stop_ids)]

    def _answer_in_step(self, questions: Sequence[SampleQuestion], share: int) -> list[str]:
        """Answers with a sharded model; each rank makes as many passes as one with `share` questions can need."""
        texts: list[str] = []
        for start in range(0, share, ANSWERED_AT_ONCE):
            requests = [Request(question.prompt, self._sampling, self._questions.stop_ids)
                        for question in questions[start:start + ANSWERED_AT_ONCE]]
            with torch.autocast(self._team.device.type, self._dtype, enabled=self._dtype != torch.float32):
                answers = answer_in_step(self._model, requests, self._sampling.max_new_tokens, self._team.device)
            texts += map(self._text, answers)
        return texts

    def _text(self, ids: Sequence[int]) -> str:
        return without_reasoning(self._questions.tokenizer.decode(ids))


def _in_batches(questions: Sequence[SampleQuestion]) -> list[Sequence[SampleQuestion]]:
    return [questions[start:start + ANSWERED_AT_ONCE] for start in range(0, len(questions), ANSWERED_AT_ONCE)]


def _quoted(text: str) -> str:
    return f'"{shortened(text, SHOWN_COLUMNS)}"'


def _by_name(scores: Mapping[str, TokenScore]) -> dict[str, dict[str, float]]:
    return {name: asdict(score) for name, score in scores.items()}
