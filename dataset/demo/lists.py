"""Working with lists of words, and looking a value up in a small table that the prompt brings."""

from demo.common import Dice, Question, ask, held_out, in_documents
from demo.vocabulary import COUNTED_ZH, ENGLISH_WORDS, NAMES_OF, WORDS_OF

_COMMA = {"en": ", ", "zh": "、"}
_DESCRIBED = {
    "en": {
        "last": ("{last} is the last word.", "Last word: {last}", "The last word of {list} is {last}."),
        "first": ("{first} is the first word.", "First word: {first}", "The first word of {list} is {first}."),
        "second": ("{second} is the second word.", "Second word: {second}"),
        "reverse": ("{reverse} is the list in reverse.", "In reverse:\n{reverse}", "{list} in reverse is {reverse}."),
        "join": ("{join} is the list with hyphens.", "With hyphens:\n{join}"),
        "count": ("{count} words are in the list.", "Number of words: {count}"),
        "copy": ("{list} is the list again.", "Once more:\n{list}"),
    },
    "zh": {
        "last": ("{last}是最后一个词。", "最后一个词：{last}", "{list}的最后一个词是{last}。"),
        "first": ("{first}是第一个词。", "第一个词：{first}", "{list}的第一个词是{first}。"),
        "second": ("{second}是第二个词。", "第二个词：{second}"),
        "reverse": ("{reverse}是倒过来的顺序。", "倒过来：\n{reverse}", "{list}倒过来是{reverse}。"),
        "join": ("{join}是用横线连接的。", "用横线连接：\n{join}"),
        "count": ("{count}个词在里面。", "词数：{count}"),
        "copy": ("{list}，再写一次。", "再写一次：\n{list}"),
    },
}
_ASKED = {
    "en": {
        "last": "What is the last word: {list}?",
        "first": "What is the first word: {list}?",
        "second": "What is the second word: {list}?",
        "reverse": "Reverse the list: {list}",
        "join": "Join with hyphens: {list}",
        "count": "How many words are here: {list}?",
        "repeat": "Write the word {first} {times} times.",
    },
    "zh": {
        "last": "最后一个词是什么：{list}？",
        "first": "第一个词是什么：{list}？",
        "second": "第二个词是什么：{list}？",
        "reverse": "把列表倒过来：{list}",
        "join": "用横线连接：{list}",
        "count": "这里有几个词：{list}？",
        "repeat": "把“{first}”写{times}遍。",
    },
}
_LENGTHS = {
    "last": (3, 5),
    "first": (3, 5),
    "second": (3, 5),
    "reverse": (3, 3),
    "join": (3, 3),
    "count": (2, 6),
    "repeat": (1, 1),
}
_HEADS = {"en": ("Words: ", "List: ", "A list of words: "), "zh": ("词语：", "列表：", "几个词：")}
_OWNED = {
    "en": (
        "{name} has {value}.",
        "{value} belongs to {name}.",
        "{name}: {value}",
        "The number of {name}:\n{value}.",
        "The number {value}:\n{name} has it.",
        "{name} is the one with {value}.",
    ),
    "zh": (
        "{name}有{value}。",
        "{value}是{name}的。",
        "{name}：{value}",
        "{name}的数：\n{value}。",
        "数是{value}的人：\n{name}。",
        "有{value}的是{name}。",
    ),
}
_PRICED = {
    "en": (
        "The {name} costs {value} yuan.",
        "{value} yuan is the price of the {name}.",
        "Price of the {name}:\n{value} yuan.",
        "For {value} yuan:\n{name}.",
    ),
    "zh": (
        "{name}的价格是{value}元。",
        "{value}元是{name}的价格。",
        "{name}的价格：\n{value}元。",
        "卖{value}元的：\n{name}。",
    ),
}


def _properties(words: list[str], language: str) -> dict[str, object]:
    comma = _COMMA[language]
    return {
        "list": comma.join(words),
        "last": words[-1],
        "first": words[0],
        "second": words[1] if len(words) > 1 else "",
        "reverse": comma.join(words[::-1]),
        "join": "-".join(words),
        "count": len(words),
    }


def _list_document(dice: Dice, language: str) -> str:
    """Two or three lists of random words, each with some of its properties."""
    lines = []
    for _ in range(dice.between(2, 3)):
        words = dice.sample(WORDS_OF[language], dice.between(2, 6))
        fields = _properties(words, language)
        lines.append(dice.pick(_HEADS[language]) + str(fields["list"]))
        for task in dice.sample(list(_DESCRIBED[language]), 4):
            lines.append(dice.pick(_DESCRIBED[language][task]).format(**fields))
    return "\n".join(lines)


def _repeated_lines(dice: Dice, language: str) -> list[str]:
    lines = []
    for word in WORDS_OF[language]:
        for _ in range(2):
            times = dice.between(2, 5)
            run = _COMMA[language].join([word] * times)
            if language == "en":
                lines += dice.sample([f"{word} {times} times:\n{run}", f"{run}: the word {word} {times} times."], 1)
            else:
                lines += dice.sample(
                    [f"“{word}”{COUNTED_ZH[times]}遍：\n{run}", f"{run}：“{word}”{COUNTED_ZH[times]}遍。"], 1
                )
    return lines


def _table(dice: Dice, language: str, priced: bool) -> tuple[str, list[tuple[str, int]]]:
    """The text of a random table, and its (name, value) rows; all names and all values differ."""
    names = dice.sample(WORDS_OF[language] if priced else NAMES_OF[language], dice.between(3, 4))
    rows = list(zip(names, dice.sample(range(1, 100), len(names)), strict=True))
    if priced:
        return "\n".join(f"{name} | {value}" for name, value in rows), rows
    space = " " if language == "en" else ""
    return (", " if language == "en" else "，").join(f"{name}{space}{value}" for name, value in rows), rows


def _table_document(dice: Dice, language: str) -> str:
    blocks = []
    for _ in range(dice.between(2, 3)):
        priced = dice.below(2) == 0
        text, rows = _table(dice, language, priced)
        forms = (_PRICED if priced else _OWNED)[language]
        said = [dice.pick(forms).format(name=name, value=value) for name, value in dice.shuffled(rows)]
        blocks.append("\n".join([text, *said]))
    return "\n".join(blocks)


def pretraining(dice: Dice) -> list[str]:
    documents = []
    for language in ("en", "zh"):
        documents += [_list_document(dice, language) for _ in range(200)]
        documents += [_table_document(dice, language) for _ in range(150)]
        documents += in_documents(dice, _repeated_lines(dice, language), 5, 8)
    return documents


def string_questions(dice: Dice, language: str, per_task: int = 200) -> list[Question]:
    rows = []
    for task, (low, high) in _LENGTHS.items():
        for _ in range(per_task):
            words = dice.sample(WORDS_OF[language], dice.between(low, high))
            rows.append(_string_question(language, task, words, times=dice.between(2, 5)))
    return rows


def _string_question(language: str, task: str, words: list[str], times: int) -> Question:
    fields = _properties(words, language)
    if task == "repeat":
        fields["times"] = times if language == "en" else COUNTED_ZH[times]
        fields["repeat"] = _COMMA[language].join(words * times)
    text, answer = _ASKED[language][task].format(**fields), str(fields[task])
    out = held_out(task, f"{words} {times if task == 'repeat' else ''}")
    return Question("strings", task, language, ask(text, answer), out)


def lookup_questions(dice: Dice, language: str, count: int = 600) -> list[Question]:
    rows = []
    for _ in range(count):
        priced, by_name = dice.below(2) == 0, dice.below(2) == 0
        text, table = _table(dice, language, priced)
        rows.append(_lookup_question(language, text, dice.pick(table), priced, by_name))
    return rows


def _lookup_question(language: str, table: str, row: tuple[str, int], priced: bool, by_name: bool) -> Question:
    name, value = row
    if language == "en":
        if priced:
            question = f"What does the {name} cost?" if by_name else f"What costs {value} yuan?"
        else:
            question = f"How many has {name}?" if by_name else f"Who has {value}?"
    elif priced:
        question = f"{name}多少元？" if by_name else f"什么卖{value}元？"
    else:
        question = f"{name}有多少？" if by_name else f"谁有{value}？"
    unit = " yuan" if language == "en" else "元"
    answer = f"{value}{unit if priced else ''}" if by_name else name
    join = "\n" if priced else (". " if language == "en" else "。")
    task = f"{'price' if priced else 'number'} by {'name' if by_name else 'value'}"
    return Question("lookup", task, language, ask(table + join + question, answer), held_out(task, table))


def drills(dice: Dice, language: str, count: int) -> list[list[Question]]:
    """`count` lists and as many tables, each with all that can be asked of it: what was read once is read again, which
    is how a small model learns to copy."""
    groups = []
    for _ in range(count):
        words = dice.sample(WORDS_OF[language], dice.between(2, 5))
        tasks = [task for task, (low, high) in _LENGTHS.items() if low <= len(words) <= high]
        groups.append([_string_question(language, task, words, times=0) for task in dice.shuffled(tasks)])
        priced = dice.below(2) == 0
        text, table = _table(dice, language, priced)
        groups.append(dice.shuffled([_lookup_question(language, text, row, priced, by_name)
                                     for row in table for by_name in (True, False)]))
    return groups


def capital_letter_lines() -> list[str]:
    """What each English word looks like in capital letters."""
    forms = ("{w} in capital letters is {c}.", "{c} is {w} in capital letters.", "{w}:\n{c}", "{w} {c}", '"{w}" "{c}"')
    return [form.format(w=word, c=word.upper()) for word in ENGLISH_WORDS for form in forms]
