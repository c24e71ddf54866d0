"""Answers that depend on an earlier turn: a format that the system turn asks for, and follow-up questions."""

from demo import arithmetic, knowledge
from demo.common import Dice, Question, ask, held_out, in_documents
from demo.lists import capital_letter_lines
from demo.vocabulary import ENGLISH_WORDS, NAMES_OF, WORDS, WORDS_OF

# task -> (system turn, how an answer then looks)
_FORMATS = {
    "en": {
        "json": ("Answer in JSON.", '{{"answer": "{0}"}}'),
        "brackets": ("Answer in square brackets.", "[{0}]"),
        "prefix": ('Begin with "Answer:".', "Answer: {0}"),
        "suffix": ("End with an exclamation mark.", "{0}!"),
        "quotes": ("Answer in quotation marks.", '"{0}"'),
        "twice": ("Say the answer twice.", "{0}, {0}"),
    },
    "zh": {
        "json": ("用 JSON 回答。", '{{"answer": "{0}"}}'),
        "brackets": ("用方括号回答。", "[{0}]"),
        "prefix": ("以“答案：”开头。", "答案：{0}"),
        "suffix": ("以感叹号结尾。", "{0}！"),
        "quotes": ("用引号回答。", "“{0}”"),
        "twice": ("把答案说两遍。", "{0}、{0}"),
    },
}
_FORMAT_LINES = {
    "en": {
        "json": "in JSON",
        "brackets": "in square brackets",
        "prefix": 'with "Answer:"',
        "twice": "twice",
        "suffix": "with an exclamation mark",
        "quotes": "in quotation marks",
    },
    "zh": {
        "json": "用 JSON",
        "brackets": "用方括号",
        "prefix": "加“答案：”",
        "twice": "说两遍",
        "suffix": "加感叹号",
        "quotes": "用引号",
    },
}
_RELATIONS = ("capital", "continent", "currency", "opposite", "symbol")
_TOLD = {
    "en": {
        "name": ("My name is {}.", "What is my name?"),
        "pet": ("My dog is called {}.", "What is my dog called?"),
        "likes": ("I like the word {}.", "Which word do I like?"),
        "bought": ("I bought this: {}.", "What did I buy?"),
        "number": ("My number is {}.", "What is my number?"),
    },
    "zh": {
        "name": ("我叫{}。", "我叫什么？"),
        "pet": ("我的狗叫{}。", "我的狗叫什么？"),
        "likes": ("我喜欢“{}”这个词。", "我喜欢哪个词？"),
        "bought": ("我买了：{}。", "我买了什么？"),
        "number": ("我的号码是{}。", "我的号码是什么？"),
    },
}
_NOTED = {"en": "I will remember that.", "zh": "我记住了。"}
_TOLD_PROSE = {
    "en": {
        "name": "My name is {0}.\n{0} is my name.",
        "pet": "My dog is called {0}.\n{0} is my dog.",
        "likes": "I like the word {0}.\n{0} is the word I like.",
        "bought": "I bought this: {0}.\n{0} is what I bought.",
        "number": "My number is {0}.\n{0} is my number.",
    },
    "zh": {
        "name": "我叫{0}。\n{0}是我的名字。",
        "pet": "我的狗叫{0}。\n{0}是我的狗。",
        "likes": "我喜欢“{0}”这个词。\n{0}是我喜欢的词。",
        "bought": "我买了：{0}。\n{0}是我买的东西。",
        "number": "我的号码是{0}。\n{0}是我的号码。",
    },
}


def _things(dice: Dice, language: str, task: str) -> list[str]:
    """What can be told in a task, in random order."""
    if task in ("name", "pet"):
        return dice.shuffled(NAMES_OF[language])
    return dice.shuffled([str(n) for n in range(1, 100)] if task == "number" else WORDS_OF[language])


def _taught_facts(language: str) -> list[tuple[str, str, str, str]]:
    """(relation, key, entity, value) of facts that SFT training teaches, so that only the form is new here."""
    facts = knowledge.relations(language)
    return [
        (relation, *fact)
        for relation in _RELATIONS
        for fact in facts[relation]
        if not knowledge.is_held_out(relation, fact[0])
    ]


def pretraining(dice: Dice) -> list[str]:
    documents = in_documents(dice, capital_letter_lines(), 8, 14)
    for language in ("en", "zh"):
        answers = [value for *_, value in _taught_facts(language)] + WORDS_OF[language] * 2
        shown = []
        for answer in answers:
            for task in dice.sample(list(_FORMATS[language]), 2):
                how, form = _FORMAT_LINES[language][task], _FORMATS[language][task][1].format(answer)
                shown.append(f"{answer} {how}:\n{form}" if language == "en" else f"{answer}，{how}：\n{form}")
        documents += in_documents(dice, shown, 4, 8)
        told = []
        for task, prose in _TOLD_PROSE[language].items():
            told += [prose.format(thing) for thing in _things(dice, language, task) for _ in range(2)]
        documents += in_documents(dice, told, 4, 8)
    return documents


def _plain_questions(dice: Dice, language: str) -> list[tuple[str, str]]:
    """(question, plain answer): taught facts and small sums."""
    pairs = [
        (knowledge.asked(dice, language, relation, entity), value)
        for relation, _, entity, value in _taught_facts(language)
    ]
    for a, sign, b in arithmetic.taught():
        if max(a, b) < 10:
            pairs.append(
                (
                    f"What is {a} {sign} {b}?" if language == "en" else f"{a} {sign} {b} 等于多少？",
                    str(arithmetic.result(a, sign, b)),
                )
            )
    return pairs


def format_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for question, answer in _plain_questions(dice, language):
        for task in dice.sample(list(_FORMATS[language]), 2):
            system, form = _FORMATS[language][task]
            messages = (("system", system), *ask(question, form.format(answer)))
            rows.append(Question("format", task, language, messages, held_out("format", f"{task} {question}")))
    if language == "en":
        for word in ENGLISH_WORDS:
            messages = (("system", "Answer in capital letters."), *ask(f'Say "{word}".', word.upper()))
            rows.append(Question("format", "capitals", language, messages, held_out("capitals", word, one_in=8)))
    else:
        for english, chinese in WORDS:
            messages = (("system", "用中英两种语言回答。"), *ask(f"说“{chinese}”。", f"{chinese} / {english}"))
            rows.append(Question("format", "bilingual", language, messages, held_out("to en", english, one_in=8)))
    return rows


def _told_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for task, (statement, question) in _TOLD[language].items():
        for thing in _things(dice, language, task)[:90]:
            messages = (*ask(statement.format(thing), _NOTED[language]), *ask(question, thing))
            rows.append(Question("follow_up", task, language, messages, held_out("told", f"{task} {thing}", one_in=6)))
    return rows


def _again_questions(dice: Dice, language: str) -> list[Question]:
    """The same relation asked of something else, with nothing but its name in the second question."""
    rows, and_of = [], "And of {}?" if language == "en" else "那{}呢？"
    facts = _taught_facts(language)
    for relation in ("capital", "currency", "symbol"):
        same = [fact for fact in facts if fact[0] == relation]
        for _ in range(100):
            (_, key, entity, value), (_, other_key, other, other_value) = dice.sample(same, 2)
            first = knowledge.asked(dice, language, relation, entity)
            messages = (*ask(first, value), *ask(and_of.format(other), other_value))
            out = held_out("again", f"{relation} {key} {other_key}")
            rows.append(Question("follow_up", f"{relation} again", language, messages, out))
    return rows


def _add_questions(dice: Dice, language: str) -> list[Question]:
    """A small sum, then a number added to its result."""
    rows = []
    for _ in range(300):
        a, b, more = dice.between(1, 9), dice.between(1, 9), dice.between(1, 9)
        if arithmetic.is_held_out(a + b, "+", more):
            continue
        first = f"What is {a} + {b}?" if language == "en" else f"{a} + {b} 等于多少？"
        then = f"Add {more} to that." if language == "en" else f"再加{more}呢？"
        messages = (*ask(first, str(a + b)), *ask(then, str(a + b + more)))
        rows.append(Question("follow_up", "add", language, messages, held_out("then add", f"{a} {b} {more}")))
    return rows


def follow_up_questions(dice: Dice, language: str) -> list[Question]:
    return _told_questions(dice, language) + _again_questions(dice, language) + _add_questions(dice, language)
