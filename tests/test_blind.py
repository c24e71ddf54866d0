"""A person votes between two answers without knowing whose they are; votes are kept, and tested exactly."""

import json
from collections import Counter

import pytest
from compared import item, items

from minimind_sft.errors import UserError
from minimind_sft.evaluation.blind import Tally, ballots, shown_ballot, take_votes, tally_lines, vote
from minimind_sft.evaluation.results import Store

BEFORE, AFTER = items(["before"] * 40), items(["after"] * 40)


class Person:
    """Types these keys, then the end of input; remembers what was shown."""

    def __init__(self, *keys: str):
        self.keys, self.shown = list(keys), []

    def ask(self, prompt: str) -> str:
        if not self.keys:
            raise EOFError
        return self.keys.pop(0)


def voted(person: Person, store: Store, before=BEFORE, after=AFTER, seed: int = 0) -> Tally:
    return vote(ballots(before, after, seed), store.task("votes", {}), person.ask, person.shown.append)


@pytest.mark.parametrize(("against", "weight"), [(0, 0), (1, 0), (0, 5), (8, 2), (5, 5), (6, 5), (60, 40), (700, 800)])
def test_the_test_is_scipy_s(against, weight):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(weight, against + weight).pvalue if against + weight else 1.0
    assert Tally(against, weight, ties=3).p_value == pytest.approx(expected, rel=1e-9)


def test_known_p_values():
    assert [Tally(*votes).p_value for votes in ((0, 5, 0), (1, 9, 7), (3, 3, 0))] == [0.0625, 22 / 1024, 1.0]


def test_only_answers_that_differ_are_voted_on():
    before = [*items(["a", "b", "c"]), item(None), item("e")]
    after = [*items(["a", "B", "C"]), item("d"), item(None)]
    assert sorted(ballot.name for ballot in ballots(before, after, 0)) == ["1", "2"]


def test_the_order_is_hidden_seeded_and_fair():
    drawn = ballots(BEFORE, AFTER, seed=7)
    order = [(ballot.name, ballot.order) for ballot in drawn]
    assert order == [(ballot.name, ballot.order) for ballot in ballots(BEFORE, AFTER, seed=7)]
    assert order != [(ballot.name, ballot.order) for ballot in ballots(BEFORE, AFTER, seed=8)]
    assert [int(name) for name, _ in order] != sorted(int(name) for name, _ in order)
    first = Counter(ballot.order[0] for seed in range(50) for ballot in ballots(BEFORE, AFTER, seed))
    assert abs(first["weight"] - 1000) < 150  # of 2000; more than six standard deviations


def test_nothing_that_is_shown_tells_whose_the_answers_are():
    """The same texts the other way round, with the other order, look the same."""
    ballot = next(ballot for ballot in ballots(items(["x"]), items(["y"]), seed=0))
    mirrored = next(ballot for seed in range(99) for ballot in ballots(items(["y"]), items(["x"]), seed)
                    if ballot.answers() == next(iter(ballots(items(["x"]), items(["y"]), 0))).answers())
    assert mirrored.order == ballot.order[::-1]
    assert list(shown_ballot(ballot, "1")) == list(shown_ballot(mirrored, "1"))


def test_votes_count_for_the_model_whose_answer_was_chosen():
    drawn = ballots(BEFORE, AFTER, 0)
    person = Person(*("1" if ballot.order[0] == "weight" else "2" for ballot in drawn[:6]), "=", "s", "?", "1", "q")
    tally = voted(person, Store(None))
    chosen = drawn[8].order[0]
    assert (tally.weight, tally.against, tally.ties) == (6 + (chosen == "weight"), chosen == "against", 1)
    assert "1: the first is better, 2: the second, =: equally good, s: skip, q: stop" in person.shown
    texts = [line for line in person.shown if line in ("before", "after")]
    assert texts[:2] == ["before" if side == "against" else "after" for side in drawn[0].order]


def test_votes_continue_after_an_interruption(tmp_path):
    """Votes are on the disk as soon as they are given; skipped questions are asked again, others are not."""
    path = tmp_path / "results.answers.jsonl"
    drawn = ballots(BEFORE, AFTER, 0)
    first = Store(path)
    voted(Person("1", "s", "="), first)
    kept = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert kept == [{"task": "votes", "item": drawn[0].name, "vote": drawn[0].order[0]},
                    {"task": "votes", "item": drawn[2].name, "vote": "tie"}]
    first.close()
    second, person = Store(path), Person(*"1" * 38)
    tally = voted(person, second)
    second.close()
    assert tally.against + tally.weight + tally.ties == 40 and not person.keys
    assert sum(line.startswith("--- question ") for line in person.shown) == 38
    assert voted(Person(), Store(path)) == tally


def test_ctrl_c_keeps_the_votes():
    class Impatient(Person):
        def ask(self, prompt: str) -> str:
            if not self.keys:
                raise KeyboardInterrupt
            return super().ask(prompt)

    assert voted(Impatient("=", "="), Store(None)).ties == 2


def test_an_answer_without_words_is_shown_as_such():
    person = Person("=")
    voted(person, Store(None), items(["one"]), items([""]))
    assert "one" in person.shown and "(no words)" in person.shown


def test_the_tally_in_words():
    assert list(tally_lines(Tally(against=1, weight=9, ties=2), asked=20)) == [
        "votes: 12 of 20 questions; --weight 9, --against 1, ties 2",
        "exact binomial test that both are preferred equally often: p = 0.02148"]
    assert list(tally_lines(Tally(0, 0, 4), 20)) == ["votes: 4 of 20 questions; --weight 0, --against 0, ties 4"]


def test_votes_belong_to_the_answers_that_were_seen(tmp_path):
    store = Store(tmp_path / "results.answers.jsonl")
    person = Person("=", "=")
    found = take_votes(BEFORE, AFTER, store, 3, person.ask, person.shown.append)
    assert found.result == {"against": 0, "weight": 0, "ties": 2, "p_value": 1.0, "questions": 40, "seed": 3}
    for after, seed in ((AFTER, 4), ([*AFTER[:-1], item("other")], 3)):
        with pytest.raises(UserError, match="holds votes with another answers: "):
            take_votes(BEFORE, after, store, seed, person.ask, person.shown.append)
