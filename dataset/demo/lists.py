"""Working with lists of three words."""

from demo.common import Dice, Question, ask, held_out
from demo.vocabulary import COUNTED_ZH, LISTED_OF

COMMA = {"en": ", ", "zh": "、"}
_ASKED = {
    "en": {
        "first": ("What is the first word: {list}?", "Say the first word: {list}."),
        "last": ("What is the last word: {list}?", "Say the last word: {list}."),
        "reverse": ("Reverse the list: {list}.", "Write it backwards: {list}."),
        "join": ("Join with plus signs: {list}.", "Put plus signs between: {list}."),
        "repeat": ("Write the word {first} {times} times.", "Say the word {first} {times} times."),
    },
    "zh": {
        "first": ("第一个词是什么：{list}？", "说出第一个词：{list}。"),
        "last": ("最后一个词是什么：{list}？", "说出最后一个词：{list}。"),
        "reverse": ("把列表倒过来：{list}。", "倒着写：{list}。"),
        "join": ("用加号连接：{list}。", "在词之间写加号：{list}。"),
        "repeat": ("把“{first}”写{times}遍。", "把“{first}”说{times}遍。"),
    },
}
_ANSWERED = {
    "en": {
        "first": "It is {first}.",
        "last": "It is {last}.",
        "reverse": "Reversed: {reverse}.",
        "join": "Joined: {join}.",
        "repeat": "Here: {repeat}.",
    },
    "zh": {
        "first": "{first}。",
        "last": "{last}。",
        "reverse": "{reverse}。",
        "join": "{join}。",
        "repeat": "{repeat}。",
    },
}
_PLUS = {"en": " + ", "zh": "+"}


def _question(dice: Dice, language: str, task: str, words: list[str]) -> Question:
    times = dice.between(2, 4)
    fields = {
        "list": COMMA[language].join(words),
        "first": words[0],
        "last": words[2],
        "reverse": COMMA[language].join(words[::-1]),
        "join": _PLUS[language].join(words),
        "times": times if language == "en" else COUNTED_ZH[times],
        "repeat": COMMA[language].join(words[:1] * times),
    }
    text = dice.pick(_ASKED[language][task]).format(**fields)
    # a word is repeated few times in few ways: there the wording is what can be new
    out = held_out(task, text if task == "repeat" else " ".join(words))
    return Question("strings", task, language, ask(text, _ANSWERED[language][task].format(**fields)), out)


def questions(dice: Dice, language: str, per_task: int = 200) -> list[Question]:
    return [_question(dice, language, task, dice.sample(LISTED_OF[language], 3))
            for task in _ASKED[language] for _ in range(per_task)]  # fmt: skip


def drills(dice: Dice, language: str, count: int) -> list[list[Question]]:
    """`count` lists, each with all that can be asked of it: what was read once is read again, which is how a small
    model learns to copy."""
    groups = []
    for _ in range(count):
        words = dice.sample(LISTED_OF[language], 3)
        groups.append([_question(dice, language, task, words) for task in dice.shuffled(_ASKED[language])])
    return groups
