"""Scores multiple-choice questions by likelihood: the option that the model finds most probable is its answer.

The questions are put in the words of lm-evaluation-harness: its tasks mmlu, ceval-valid and cmmlu for letters, and
mmlu_continuation for texts.
"""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch

from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.evaluation.answering import problem_lines
from minimind_sft.evaluation.choice_files import ChoiceQuestion, read_choices
from minimind_sft.evaluation.continuations import Continuation, likelihoods
from minimind_sft.evaluation.results import Candidate, Outcome, Store, Task, are_numbers, data_facts
from minimind_sft.inference.lowering import LanguageModel
from minimind_sft.settings.evaluate import ChoiceSettings
from minimind_sft.terminal import aligned, counted, progress_bar

QUESTIONS_AT_ONCE = 16
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 1.0}
"""By the dtype of the weights: two scores that differ by less may change places when other questions join the batch.

Others changed a score of SmolLM2-135M by up to 1e-4 in float32 and 0.5 in bfloat16 on a CPU; the scores are about 20.
"""
BETWEEN = "\n\n"
"""Text between examples, and before the question."""


@dataclass(frozen=True)
class Words:
    """The words around a benchmark's questions, for letters and for texts.

    letters_opening, texts_opening: come first, with the subject.
    texts_question: a question whose options are not shown.
    before_answer: the last words of the prompt.
    before_text: stands between them and an option's text.
    """

    letters_opening: str
    texts_opening: str
    texts_question: str
    before_answer: str
    before_text: str


WORDS = {
    "mmlu": Words("The following are multiple choice questions (with answers) about {}.",
                  "The following are questions (with answers) about {}.", "Question: {}", "Answer:", " "),
    "ceval": Words("以下是中国关于{}的单项选择题，请选出其中的正确答案。", "以下是中国关于{}的问题和答案。",
                   "{}", "答案：", ""),
    "cmmlu": Words("以下是关于{}的单项选择题，请直接给出正确答案的选项。", "以下是关于{}的问题和答案。",
                   "{}", "答案：", ""),
}


@dataclass(frozen=True)
class ChoicePrompt:
    """A question as the model reads it, with a continuation for each option.

    examples: how many solved examples come before the question.
    problem: why it cannot be asked, with its place; then there are no continuations.
    """

    question: ChoiceQuestion
    continuations: tuple[Continuation, ...]
    examples: int
    problem: str = ""


@dataclass(frozen=True)
class ChosenOption:
    """The log-likelihoods of a question's options in nats, and what they say.

    lengths: characters of each option, by which acc_norm divides; 1 for letters.
    """

    question: ChoiceQuestion
    log_likelihoods: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def chosen(self) -> int:
        """The most likely option; the first of equals."""
        return _best(self.log_likelihoods)

    @property
    def chosen_norm(self) -> int:
        """The most likely option per character."""
        return _best(self._per_character)

    def is_close(self, nats: float) -> bool:
        """Whether another option is within `nats` of a chosen one, so that rounding may decide."""
        return any(value > values[best] - nats for values, best in ((self.log_likelihoods, self.chosen),
                                                                    (self._per_character, self.chosen_norm))
                   for index, value in enumerate(values) if index != best)

    @property
    def _per_character(self) -> list[float]:
        return [one / length for one, length in zip(self.log_likelihoods, self.lengths, strict=True)]

    @property
    def is_right(self) -> bool:
        return self.chosen == self.question.answer

    @property
    def is_right_norm(self) -> bool:
        return self.chosen_norm == self.question.answer

    def as_json(self) -> dict[str, Any]:
        """Returns the line of the answers file for this question."""
        question = self.question
        return {"kind": question.subject, "place": question.place, "question": question.question,
                "options": list(question.options), "expected": question.letters[question.answer],
                "answer": question.letters[self.chosen], "exact": self.is_right,
                "answer_norm": question.letters[self.chosen_norm], "exact_norm": self.is_right_norm,
                "log_likelihoods": list(self.log_likelihoods)}


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


class ChoicePrompter:
    """Turns questions into prompts, each with `few_shot` solved examples of its subject, the first in their files.

    Examples that do not fit into the context are left out, the last first.

    Args:
        scored: what is scored after the prompt, the "letters" of the options, which the prompt lists, or their "texts",
            which it does not show.
        context: tokens that the model can read.

    Raises:
        UserError: when it makes a prompt, if the subject has too few examples.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, scored: str, few_shot: int = 0,
                 examples: Iterable[ChoiceQuestion] = ()):
        self._tokenizer, self._context, self._few_shot = tokenizer, context, few_shot
        self._by_letter = scored == "letters"
        self._examples: dict[str, list[ChoiceQuestion]] = defaultdict(list)
        for example in examples:
            self._examples[example.subject].append(example)
        self._names = json.loads(files(__package__).joinpath("subjects_zh.json").read_text(encoding="utf-8"))

    def prompt(self, question: ChoiceQuestion) -> ChoicePrompt:
        solved = self._solved(question)
        for count in range(len(solved), -1, -1):
            text = BETWEEN.join([self._opening(question), *solved[:count], self._asked(question)])
            continuations = self._continuations(text, [self._said(question, index) for index in
                                                       range(len(question.options))])
            longest = max(len(one.context) + len(one.ids) - 1 for one in continuations)
            if longest <= self._context:
                return ChoicePrompt(question, continuations, count)
        return ChoicePrompt(question, (), 0, f"{question.place}: the question has {longest:,} tokens, the model's "
                                             f"context is {self._context:,}")

    def lengths(self, question: ChoiceQuestion) -> tuple[int, ...]:
        """Returns the characters of each option, by which lm-evaluation-harness normalises: 1 for a letter."""
        return tuple(1 if self._by_letter else len(option) for option in question.options)

    def _solved(self, question: ChoiceQuestion) -> list[str]:
        if not self._few_shot:
            return []
        others = [one for one in self._examples[question.subject]
                  if (one.question, one.options) != (question.question, question.options)]
        if len(others) < self._few_shot:
            raise UserError(f"--few_shot is {self._few_shot}, but --few_shot_path has "
                            f"{counted(len(others), 'example')} of {question.subject}, the subject of {question.place}")
        return [self._asked(one) + self._said(one, one.answer) for one in others[:self._few_shot]]

    def _opening(self, question: ChoiceQuestion) -> str:
        words = WORDS[question.benchmark]
        chinese = self._names.get(question.benchmark, {})
        subject = chinese.get(question.subject, question.subject.replace("_", " "))
        return (words.letters_opening if self._by_letter else words.texts_opening).format(subject)

    def _asked(self, question: ChoiceQuestion) -> str:
        words, text = WORDS[question.benchmark], question.question.strip()
        lines = ([text, *(f"{letter}. {option}" for letter, option in
                          zip(question.letters, question.options, strict=True))]
                 if self._by_letter else [words.texts_question.format(text)])
        return "\n".join([*lines, words.before_answer])

    def _said(self, question: ChoiceQuestion, option: int) -> str:
        if self._by_letter:
            return f" {question.letters[option]}"
        return WORDS[question.benchmark].before_text + question.options[option]

    def _continuations(self, prompt: str, answers: Sequence[str]) -> tuple[Continuation, ...]:
        """Encodes prompt and answer together, as one text; apart, where a token would join the end of the prompt and
        the beginning of the answer."""
        encode, before = self._tokenizer.encode_ordinary, self._tokenizer.before_text
        context = [*before, *encode(prompt)]
        compact = array("i", context)  # thousands of prompts are kept, and a list takes nine times the memory
        found = []
        for answer in answers:
            whole = [*before, *encode(prompt + answer)]
            joined = whole[:len(context)] != context
            found.append(Continuation(compact, encode(answer, inside=True) if joined else whole[len(context):]))
        return tuple(found)


def score_choices(model: LanguageModel, prompter: ChoicePrompter, prompts: Sequence[ChoicePrompt]
                  ) -> Iterator[list[ChosenOption]]:
    """Yields what the model chooses, some questions at a time, in order. The prompts must have no problem.

    Which questions are together decides how sums are rounded. Where that could change the choice, because two options
    are almost equal, the question is scored again, alone.
    """
    close = CLOSE[model.embed_tokens.weight.dtype]
    for start in range(0, len(prompts), QUESTIONS_AT_ONCE):
        batch = prompts[start:start + QUESTIONS_AT_ONCE]
        values = iter(_log_likelihoods(model, [one for prompt in batch for one in prompt.continuations]))
        results = [ChosenOption(prompt.question, tuple(next(values) for _ in prompt.continuations),
                                prompter.lengths(prompt.question)) for prompt in batch]
        yield [replace(result, log_likelihoods=tuple(_log_likelihoods(model, prompt.continuations)))
               if result.is_close(close) else result for result, prompt in zip(results, batch, strict=True)]


def _log_likelihoods(model: LanguageModel, continuations: Sequence[Continuation]) -> list[float]:
    found = dict(likelihoods(model, continuations))
    return [found[index].log_likelihood for index in range(len(continuations))]


def evaluate_choices(candidate: Candidate, settings: ChoiceSettings, store: Store, name: str = "") -> Outcome:
    """Asks all questions and scores what the model chooses, over all and by subject.

    Args:
        name: tells the questions of several candidates apart in the store.

    Raises:
        UserError: if a file is not in a known layout, or a subject has too few examples.
    """
    files, example_files = find_files(settings.choices, "--choices"), find_files(settings.few_shot_path)
    loaded = candidate.loaded
    prompter = ChoicePrompter(loaded.tokenizer, loaded.model.config.context, settings.scored_options,
                              settings.few_shot, read_choices(example_files))
    prompts = [prompter.prompt(question) for question in
               progress_bar(read_choices(files), label="prompts", unit=" questions")]
    data, examples = data_facts(files), data_facts(example_files)
    task = store.task(f"choices{name}", {
        **candidate.identity, "data": [facts["sha256"] for facts in data], "few_shot": settings.few_shot,
        "examples": [facts["sha256"] for facts in examples], "scored_options": settings.scored_options}, _is_choice)
    results = _choose(loaded.model, prompter, {str(number): prompt for number, prompt in enumerate(prompts)
                                               if not prompt.problem}, task)
    lines = list(choice_lines(results, prompts, settings.few_shot))
    return Outcome({"data": data, "examples": examples, "few_shot": settings.few_shot,
                    "scored_options": settings.scored_options,
                    "problems": [prompt.problem for prompt in prompts if prompt.problem],
                    "fewer_examples": _with_fewer(prompts, settings.few_shot), **accuracies(results)}, lines)


def _is_choice(values: dict[str, Any]) -> bool:
    """Says whether a finished item is as `ChosenOption.as_json` describes a choice."""
    likelihoods, options = values.get("log_likelihoods"), values.get("options")
    return (isinstance(likelihoods, list) and isinstance(options, list) and len(likelihoods) == len(options) > 0
            and are_numbers(likelihoods) and "answer" in values
            and all(isinstance(values.get(name), bool) for name in ("exact", "exact_norm")))


def _choose(model: LanguageModel, prompter: ChoicePrompter, prompts: Mapping[str, ChoicePrompt],
            task: Task) -> list[ChosenOption]:
    """Returns what the model chooses for each prompt; those in the task already are not asked again."""
    left = {name: prompt for name, prompt in prompts.items() if name not in task.done}
    names = iter(left)
    with progress_bar(label="choices", total=len(prompts), initial=len(prompts) - len(left),
                      unit=" questions") as bar:
        for batch in score_choices(model, prompter, list(left.values())):
            task.add({next(names): result.as_json() for result in batch})
            bar.update(len(batch))
    for name, prompt in prompts.items():
        if len(task.done[name]["log_likelihoods"]) != len(prompt.question.options):
            raise task.foreign(name)
    return [ChosenOption(prompt.question, tuple(task.done[name]["log_likelihoods"]), prompter.lengths(prompt.question))
            for name, prompt in prompts.items()]


def accuracies(results: Iterable[ChosenOption]) -> dict[str, Any]:
    """Returns the scores of all questions and of each subject.

    acc: share of questions whose most likely option is right. acc_norm: the same with log-likelihoods divided by the
    options' characters. stderr: of acc, over the draw of the questions. guessing: the share that guesses get right.
    acc_of_subjects: mean of the subjects' acc, as C-Eval and CMMLU report it.
    """
    subjects: dict[str, list[ChosenOption]] = defaultdict(list)
    for result in results:
        subjects[result.question.subject].append(result)
    by_subject = {subject: _accuracy(subjects[subject]) for subject in sorted(subjects)}
    whole = _accuracy([result for results in subjects.values() for result in results])
    return {**whole, "acc_of_subjects": math.fsum(one["acc"] for one in by_subject.values()) / len(by_subject),
            "by_subject": by_subject}


def _accuracy(results: Sequence[ChosenOption]) -> dict[str, Any]:
    count = len(results)
    acc, acc_norm = (sum(right) / count for right in ([result.is_right for result in results],
                                                      [result.is_right_norm for result in results]))
    return {"acc": acc, "acc_norm": acc_norm, "stderr": math.sqrt(acc * (1 - acc) / max(count - 1, 1)),
            "guessing": math.fsum(1 / len(result.question.options) for result in results) / count,
            "questions": count}


def choice_lines(results: Sequence[ChosenOption], prompts: Sequence[ChoicePrompt], few_shot: int) -> Iterator[str]:
    """Yields the report's lines: a table of subjects, what could not be asked as wanted, and the total.

    Raises:
        UserError: if no question could be asked.
    """
    problems = [prompt.problem for prompt in prompts if prompt.problem]
    if not results:
        raise UserError(f"--choices: no question can be asked, starting with {problems[0]}")
    scores = accuracies(results)
    yield from _table(scores["by_subject"])
    yield from problem_lines("not asked", problems, "question", "--out")
    if fewer := _with_fewer(prompts, few_shot):
        yield (f"asked with fewer than {counted(few_shot, 'example')}, as more do not fit into the context: "
               f"{counted(fewer, 'question')}")
    yield (f"acc: {scores['acc']:.1%} ± {scores['stderr']:.1%}, acc_norm: {scores['acc_norm']:.1%}, guessing: "
           f"{scores['guessing']:.1%} ({counted(scores['questions'], 'question')}, "
           f"{counted(len(scores['by_subject']), 'subject')}, mean of subjects {scores['acc_of_subjects']:.1%})")


def _with_fewer(prompts: Iterable[ChoicePrompt], few_shot: int) -> int:
    """Counts the questions that are asked with fewer examples than wanted."""
    return sum(prompt.examples < few_shot for prompt in prompts if not prompt.problem)


def _table(by_subject: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [[subject, f"{one['questions']:,}", f"{one['acc']:.1%}",
             f"{one['acc_norm']:.1%}"] for subject, one in by_subject.items()]
    return aligned([["subject", "questions", "acc", "acc_norm"], *rows], numbers=(1, 2, 3))
