"""Answers that depend on an earlier turn: a format that the system turn asks for, and follow-up questions."""

from demo import arithmetic, knowledge
from demo.common import Dice, Question, ask, held_out, in_documents
from demo.vocabulary import LISTED_OF, NAMES_OF

# task -> (system turn, how an answer then looks)
_FORMATS = {
    "en": {
        "json": ("Answer in JSON.", '{{"answer": "{0}"}}'),
        "prefix": ('Begin with "Answer:".', "Answer: {0}"),
        "suffix": ("End with an exclamation mark.", "It is {0}!"),
        "twice": ("Say the answer twice.", "It is {0}, {0}."),
        "opener": ('Begin with "Well".', "Well, it is {0}."),
    },
    "zh": {
        "json": ("用 JSON 回答。", '{{"answer": "{0}"}}'),
        "prefix": ("以“答案：”开头。", "答案：{0}"),
        "suffix": ("以感叹号结尾。", "{0}！"),
        "twice": ("把答案说两遍。", "{0}，{0}。"),
        "opener": ("以“好的”开头。", "好的，{0}。"),
    },
}
_RELATIONS = ("capital", "continent", "opposite", "symbol")  # whose answers need no article
_TOLD = {
    "en": {
        "name": ("My name is {}.", "What is my name?", "Your name is {}."),
        "pet": ("My dog is called {}.", "What is my dog called?", "Your dog is called {}."),
        "likes": ("I like this word: {}.", "Which word do I like?", "You like this word: {}."),
        "bought": ("I bought this: {}.", "What did I buy?", "You bought this: {}."),
        "number": ("My number is {}.", "What is my number?", "Your number is {}."),
    },
    "zh": {
        "name": ("我的名字：{}。", "我叫什么？", "你的名字：{}。"),
        "pet": ("我的狗的名字：{}。", "我的狗叫什么？", "你的狗的名字：{}。"),
        "likes": ("我喜欢“{}”这个词。", "我喜欢哪个词？", "你喜欢“{}”这个词。"),
        "bought": ("我买了：{}。", "我买了什么？", "你买了：{}。"),
        "number": ("我的号码是{}。", "我的号码是什么？", "你的号码是{}。"),
    },
}
_NOTED = {"en": "I will remember that.", "zh": "我记住了。"}


def _things(dice: Dice, language: str, task: str) -> list[str]:
    """What can be told in a task, in random order."""
    if task in ("name", "pet"):
        return dice.shuffled(NAMES_OF[language])
    return dice.shuffled([str(n) for n in range(1, 31)] if task == "number" else LISTED_OF[language])


def pretraining(dice: Dice) -> list[str]:
    """What was told to somebody, and comes back from him."""
    documents = []
    for language in ("en", "zh"):
        told = []
        for task, (statement, _, answer) in _TOLD[language].items():
            for thing in _things(dice, language, task) * 6:
                told.append(f"{statement}\n{answer}".format(thing, thing))
        documents += in_documents(dice, told, 4, 8)
    return documents


def _plain_questions(dice: Dice, language: str) -> list[tuple[str, str]]:
    """(question, plain answer): taught facts in taught wordings, and sums that are taught."""
    pairs = [
        (dice.pick(knowledge.taught_wordings(language, relation, key)).format(e=entity), value)
        for relation in _RELATIONS
        for key, entity, value in knowledge.relations(language)[relation]
    ]
    for a, sign, b in arithmetic.taught():
        asked = f"What is {a} {sign} {b}?" if language == "en" else f"{a} {sign} {b} 等于多少？"
        pairs.append((asked, str(arithmetic.result(a, sign, b))))
    return pairs


def format_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for question, answer in _plain_questions(dice, language):
        for task in dice.sample(list(_FORMATS[language]), 2):
            system, form = _FORMATS[language][task]
            messages = (("system", system), *ask(question, form.format(answer)))
            rows.append(Question("format", task, language, messages, held_out("format", f"{task} {question}")))
    return rows


def _told_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for task, (statement, question, answer) in _TOLD[language].items():
        for thing in _things(dice, language, task):
            messages = (*ask(statement.format(thing), _NOTED[language]), *ask(question, answer.format(thing)))
            rows.append(Question("follow_up", task, language, messages, held_out("told", f"{task} {thing}", one_in=4)))
    return rows


def _again_questions(dice: Dice, language: str) -> list[Question]:
    """The same relation asked of something else, with nothing but its name in the second question."""
    rows, and_of = [], "And of {}?" if language == "en" else "那{}呢？"
    for relation in ("capital", "currency", "symbol"):
        for _ in range(100):
            (key, entity, value), (other_key, other, other_value) = dice.sample(
                knowledge.relations(language)[relation], 2
            )
            first = dice.pick(knowledge.taught_wordings(language, relation, key)).format(e=entity)
            messages = (
                *ask(first, knowledge.answer(relation, value, language)),
                *ask(and_of.format(other), knowledge.answer(relation, other_value, language)),
            )
            out = held_out("again", f"{relation} {key} {other_key}")
            rows.append(Question("follow_up", f"{relation} again", language, messages, out))
    return rows


def _add_questions(dice: Dice, language: str) -> list[Question]:
    """A small sum, then a number added to its result."""
    rows = []
    for _ in range(300):
        a, b, more = dice.between(1, 9), dice.between(1, 9), dice.between(1, 9)
        if a + b + more > arithmetic.LARGEST or arithmetic.is_held_out(a, "+", b):
            continue
        if arithmetic.is_held_out(a + b, "+", more):
            continue
        first = f"What is {a} + {b}?" if language == "en" else f"{a} + {b} 等于多少？"
        then = f"Add {more} to that." if language == "en" else f"再加{more}呢？"
        messages = (*ask(first, str(a + b)), *ask(then, str(a + b + more)))
        rows.append(Question("follow_up", "add", language, messages, held_out("then add", f"{a} {b} {more}")))
    return rows


def follow_up_questions(dice: Dice, language: str) -> list[Question]:
    return _told_questions(dice, language) + _again_questions(dice, language) + _add_questions(dice, language)
