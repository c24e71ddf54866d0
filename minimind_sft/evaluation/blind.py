"""Lets a person vote between the answers of two models without knowing which is which."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, get_args

from minimind_sft.evaluation.items import Item
from minimind_sft.evaluation.results import Outcome, Store, Task
from minimind_sft.terminal import counted

Side = Literal["against", "weight"]
Vote = Literal["against", "weight", "tie"]
KEYS = ("1", "2", "=", "s", "q")
HELP = "1: the first is better, 2: the second, =: equally good, s: skip, q: stop"


@dataclass(frozen=True)
class Ballot:
    """A question with two answers, in an order that hides whose they are.

    name: of the question's item.
    order: whose the first and the second answer are.
    """

    name: str
    before: Item
    after: Item
    order: tuple[Side, Side]

    def answers(self) -> list[str]:
        """Returns the answers in the order in which they are shown."""
        said = {"against": self.before.answer or "", "weight": self.after.answer or ""}
        return [said[side] for side in self.order]


@dataclass(frozen=True)
class Tally:
    """Votes for either model; ties count for none."""

    against: int
    weight: int
    ties: int

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the exact binomial test (sign test) that both models are preferred equally often.

        Ties are left out, as is usual (Conover 1999, Practical Nonparametric Statistics, section 3.4).
        """
        votes, fewer = self.against + self.weight, min(self.against, self.weight)
        tail = sum(math.comb(votes, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / 2**votes)

    def as_json(self) -> dict[str, Any]:
        return {"against": self.against, "weight": self.weight, "ties": self.ties, "p_value": self.p_value}


def ballots(before: Sequence[Item], after: Sequence[Item], seed: int) -> list[Ballot]:
    """Returns the questions whose answers differ, in a random order, each with its answers in a random order.

    Both orders depend on nothing but the seed and the question's number, so they stay when votes continue later.
    """
    drawn = []
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        if one.answer is None or other.answer is None or one.answer == other.answer:
            continue
        draw = random.Random(f"{seed} {number}")
        sides: list[Side] = ["against", "weight"]
        draw.shuffle(sides)
        drawn.append((draw.random(), Ballot(str(number), one, other, (sides[0], sides[1]))))
    return [ballot for _, ballot in sorted(drawn, key=lambda pair: pair[0])]


def take_votes(before: Sequence[Item], after: Sequence[Item], store: Store, seed: int, ask: Callable[[str], str],
               say: Callable[[str], None]) -> Outcome:
    """Lets a person vote on all questions, continuing from the votes in the store.

    Votes belong to these very answers in this order; the store refuses to continue with others.
    """
    questions = ballots(before, after, seed)
    texts = [[ballot.name, *ballot.answers()] for ballot in questions]
    task = store.task("votes", {"answers": sha256(json.dumps(texts).encode()).hexdigest()},
                      lambda values: values.get("vote") in get_args(Vote))
    tally = vote(questions, task, ask, say)
    return Outcome({**tally.as_json(), "questions": len(questions), "seed": seed},
                   list(tally_lines(tally, len(questions))))


def vote(questions: Sequence[Ballot], votes: Task, ask: Callable[[str], str], say: Callable[[str], None]) -> Tally:
    """Asks for the votes that are missing, keeps each as soon as it is given, and counts all.

    Args:
        ask: shows a prompt and returns what the person types. EOFError and KeyboardInterrupt stop the voting.
    """
    left = [ballot for ballot in questions if ballot.name not in votes.done]
    try:
        for number, ballot in enumerate(left, start=len(questions) - len(left) + 1):
            for line in shown_ballot(ballot, f"question {number} of {len(questions)}"):
                say(line)
            key = _key(ask, say)
            if key == "q":
                break
            if key in ("1", "2", "="):
                choice: Vote = "tie" if key == "=" else ballot.order[int(key) - 1]
                votes.add({ballot.name: {"vote": choice}})
    except (EOFError, KeyboardInterrupt):
        say("")
    given = [votes.done[ballot.name]["vote"] for ballot in questions if ballot.name in votes.done]
    return Tally(given.count("against"), given.count("weight"), given.count("tie"))


def tally_lines(tally: Tally, asked: int) -> Iterator[str]:
    """Yields the outcome of a vote on `asked` questions for the terminal."""
    votes = tally.against + tally.weight + tally.ties
    yield (f"votes: {votes} of {counted(asked, 'question')}; --weight {tally.weight}, --against {tally.against}, ties "
           f"{tally.ties}")
    if tally.against + tally.weight:
        yield f"exact binomial test that both are preferred equally often: p = {tally.p_value:.4g}"


def shown_ballot(ballot: Ballot, title: str) -> Iterator[str]:
    """Yields a question and its two answers; nothing in it depends on whose they are."""
    question = ballot.after.question
    assert question is not None
    yield ""
    yield f"--- {title}"
    yield question.messages[-1]["content"]
    for number, answer in enumerate(ballot.answers(), start=1):
        yield f"--- answer {number}"
        yield answer or "(no words)"
    yield "---"


def _key(ask: Callable[[str], str], say: Callable[[str], None]) -> str:
    """Asks until the answer is one of KEYS."""
    while (key := ask("better [1 2 = s q]? ").strip().lower()) not in KEYS:
        say(HELP)
    return key
