"""Comparing numbers and things, and going on with sequences."""

from collections.abc import Sequence
from itertools import pairwise, permutations

from demo.common import Dice, Question, ask, in_documents, it_is, wording_apart
from demo.vocabulary import LETTERS, MONTHS_OF, SIZES_OF, WEEKDAYS_OF

_LARGEST = 20  # of the numbers that are compared
_HIGHEST = 40  # of the numbers in sequences
_STEPS = (1, 2, 5, 10, -1)
_COMPARED = {
    "en": (
        "{big} is larger than {small}",
        "{small} is smaller than {big}",
        "{small} < {big}",
        "Of {a} and {b}, {big} is the larger",
        "Of {a} and {b}, {small} is the smaller",
    ),
    "zh": (
        "{big}比{small}大",
        "{small}比{big}小",
        "{small} < {big}",
        "{a}和{b}，大的是{big}",
        "{a}和{b}，小的是{small}",
    ),
}
_THINGS_COMPARED = {
    "en": (
        "The {big} is bigger than the {small}.",
        "The {small} is smaller than the {big}.",
        "Of the {a} and the {b}, the {big} is bigger.",
        "Of the {a} and the {b}, the {small} is smaller.",
    ),
    "zh": ("{big}比{small}大。", "{small}比{big}小。", "{a}和{b}，{big}更大。", "{a}和{b}，{small}更小。"),
}
_AFTER = {
    "en": (
        "{b} comes after {a}.",
        "{a} comes before {b}.",
        "After {a} comes {b}.",
        "Before {b} comes {a}.",
        "{a}, then {b}",
        "{b} follows {a}.",
    ),
    "zh": (
        "{a}的后面是{b}。",
        "{b}的前面是{a}。",
        "{a}之后是{b}。",
        "{b}之前是{a}。",
        "先是{a}，再是{b}",
        "{b}跟在{a}后面。",
    ),
}


def _ordered_things(language: str) -> list[tuple[str, str, str]]:
    """(key, smaller, bigger) of every two things that are compared; the key is the same in both languages."""
    pairs = []
    for english, own in zip(SIZES_OF["en"], SIZES_OF[language], strict=True):
        for high in range(len(own)):
            pairs.extend((f"{english[low]} {english[high]}", own[low], own[high]) for low in range(high))
    return pairs


def _run(start: int, step: int, length: int) -> list[int] | None:
    numbers = [start + step * place for place in range(length)]
    return numbers if min(numbers) >= 0 and max(numbers) <= _HIGHEST else None


def _joined(items: list[str], language: str) -> str:
    return (", " if language == "en" else "、").join(items)


def _calendars(language: str) -> tuple[list[str], ...]:
    return WEEKDAYS_OF[language], MONTHS_OF[language]


def _compared_lines(dice: Dice, language: str) -> list[str]:
    lines = []
    for _ in range(600):
        a, b = dice.between(1, _LARGEST), dice.between(1, _LARGEST)
        if a != b:
            form = dice.pick(_COMPARED[language])
            lines.append(form.format(a=a, b=b, small=min(a, b), big=max(a, b)))
    for _, small, big in _ordered_things(language):
        for form in _THINGS_COMPARED[language]:
            for a, b in ((small, big), (big, small)):
                lines.append(form.format(a=a, b=b, small=small, big=big))
    return lines


def _sequence_lines(dice: Dice, language: str) -> list[str]:
    lines = []
    for _ in range(600):
        numbers = _run(dice.below(_HIGHEST + 1), dice.pick(_STEPS), dice.between(4, 6))
        if numbers:
            lines.append(_joined([str(number) for number in numbers], language))
    for _ in range(150):
        start, length = dice.below(20), dice.between(4, 7)
        lines.append(_joined(LETTERS[start : start + length], language))
    for calendar in _calendars(language):
        for _ in range(40):
            start, length = dice.below(len(calendar)), dice.between(3, 6)
            lines.append(_joined([calendar[(start + k) % len(calendar)] for k in range(length)], language))
        for place, item in enumerate(calendar):
            following = calendar[(place + 1) % len(calendar)]
            lines.extend(form.format(a=item, b=following) for form in _AFTER[language] for _ in range(4))
    for first, second in pairwise(LETTERS):
        lines.extend(form.format(a=first, b=second) for form in _AFTER[language])
    return lines


def pretraining(dice: Dice) -> list[str]:
    documents = []
    for language in ("en", "zh"):
        documents += in_documents(dice, _compared_lines(dice, language), 8, 14)
        documents += in_documents(dice, _sequence_lines(dice, language), 6, 10)
    return documents


def _in_words(kind: str, task: str, language: str, content: str, texts: Sequence[str], answer: str) -> list[Question]:
    """The same question in all its wordings; of every second content one wording is kept apart."""
    apart = wording_apart(task, f"{language} {content}", len(texts))
    return [Question(kind, task, language, ask(text, answer), place == apart) for place, text in enumerate(texts)]


def comparison_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for a, b in permutations(range(1, _LARGEST + 1), 2):
        for larger in (True, False):
            answer = str(max(a, b) if larger else min(a, b))
            if language == "en":
                more = "larger" if larger else "smaller"
                texts = (f"Which number is {more}: {a} or {b}?", f"Name the {more} number: {a} or {b}.")
            else:
                more = "大" if larger else "小"
                texts = (f"{a}和{b}，哪个{more}？", f"{a}和{b}，{more}的是哪个？")
            rows += _in_words("comparison", "numbers", language, f"{a} {b} {larger}", texts, answer)
    for key, small, big in _ordered_things(language):
        for a, b in ((small, big), (big, small)):
            for bigger in (True, False):
                answer = big if bigger else small
                if language == "en":
                    more = "bigger" if bigger else "smaller"
                    texts = (f"Which is {more}: the {a} or the {b}?", f"Is the {a} {more} or the {b}?")
                    answer = f"The {answer}."
                else:
                    more = "大" if bigger else "小"
                    texts = (f"{a}和{b}，哪个更{more}？", f"{a}和{b}，更{more}的是哪个？")
                    answer = f"{answer}。"
                rows += _in_words("comparison", "things", language, f"{key} {a} {bigger}", texts, answer)
    return rows


def sequence_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for step in _STEPS:
        for start in range(_HIGHEST + 1):
            numbers = _run(start, step, 4)
            if numbers:
                rows += _next_questions(language, "numbers", [str(number) for number in numbers])
    for start in range(23):
        rows += _next_questions(language, "letters", LETTERS[start : start + 4])
    for name, calendar in zip(("weekday", "month"), _calendars(language), strict=True):
        for place in range(len(calendar)):
            rows += _next_questions(language, name, [calendar[(place + k) % len(calendar)] for k in range(4)])
            rows += _neighbour_questions(language, name, calendar, place)
    return rows


def _next_questions(language: str, task: str, run: list[str]) -> list[Question]:
    *shown, last = run
    listed = _joined(shown, language)
    answer = last if task == "numbers" else it_is(last, language)
    wordings = {
        "en": (f"What comes next: {listed}?", f"Continue the sequence: {listed}.", f"What follows: {listed}?"),
        "zh": (f"{listed}，下一个是什么？", f"{listed}，接下来是什么？", f"{listed}，后面是什么？"),
    }[language]
    return _in_words("sequence", task, language, listed, wordings, answer)


def _neighbour_questions(language: str, name: str, calendar: list[str], place: int) -> list[Question]:
    item, rows = calendar[place], []
    kind_of_day = {"weekday": ("day", "哪一天"), "month": ("month", "哪个月")}[name]
    for shift, english, chinese in ((1, "after", "后面"), (-1, "before", "前面")):
        answer = it_is(calendar[(place + shift) % len(calendar)], language)
        if language == "en":
            texts = (f"Which {kind_of_day[0]} comes {english} {item}?", f"Name the {kind_of_day[0]} {english} {item}.")
        else:
            texts = (f"{item}{chinese}是{kind_of_day[1]}？", f"说出{item}{chinese}的{kind_of_day[1][-1:]}。")
        rows += _in_words("sequence", name, language, f"{english} {item}", texts, answer)
    return rows
