"""Facts from tables (countries, elements, opposites, categories) and translations of common words."""

from collections.abc import Sequence

from demo.atlas import RELATIONS_OF
from demo.common import Dice, Question, ask, in_documents, it_is, sentence, wording_apart
from demo.vocabulary import CATEGORY_OF, OPPOSITES_OF, WORDS

# Several wordings of each fact, some with the value first: a small model that has seen a fact in a single
# wording cannot answer from it.
_STATED = {
    "en": {
        "capital": (
            "The capital of {e} is {v}.",
            "{v} is the capital of {e}.",
            "{e} has {v} as its capital.",
            "{e}: capital {v}",
            "The capital city of {e} is called {v}.",
            "In {e} the government sits in the capital, {v}.",
            "About {e}:\n{v} is its capital.",
        ),
        "continent": (
            "{e} is a country in {v}.",
            "{e} lies in {v}.",
            "{v} is the continent of {e}.",
            "{e}: continent {v}",
            "On the map {e} is part of {v}.",
            "About {e}:\n{v} is its continent.",
        ),
        "currency": (
            "The currency of {e} is the {v}.",
            "People in {e} pay with the {v}.",
            "In {e} prices are in {v}.",
            "{e}: currency {v}",
            "The money of {e} is called {v}.",
            "About {e}:\n{v} is its currency.",
        ),
        "symbol": (
            "The chemical symbol of {e} is {v}.",
            "{v} is the symbol of {e}.",
            "{e} has the symbol {v}.",
            "{e}: symbol {v}",
            "Chemists write {e} as {v}.",
            "The element {e} is written {v}.",
            "About {e}:\n{v} is its symbol.",
        ),
        "opposite": (
            'The opposite of "{e}" is "{v}".',
            '"{v}" is the opposite of "{e}".',
            '"{e}" and "{v}" are opposites.',
            "{e}: opposite {v}",
            "{v} is not {e}, it is the opposite.",
            'About "{e}":\n{v} is its opposite.',
        ),
        "category": (
            "{e}: a kind of {v}",
            'The word "{e}" names a kind of {v}.',
            "{v}: {e} is one example.",
            'About "{e}":\n{v} is the kind of thing it is.',
            'The kind of thing named by "{e}" is {v}.',
        ),
    },
    "zh": {
        "capital": (
            "{e}的首都是{v}。",
            "{v}是{e}的首都。",
            "{e}把首都设在{v}。",
            "{e}：首都{v}",
            "{e}首都的名字叫{v}。",
            "{e}的政府在首都{v}办公。",
            "关于{e}：\n{v}是它的首都。",
        ),
        "continent": (
            "{e}在{v}。",
            "{e}位于{v}。",
            "{e}是{v}的国家。",
            "{e}：大洲{v}",
            "从地图上看，{e}属于{v}。",
            "关于{e}：\n{v}是它所在的大洲。",
        ),
        "currency": (
            "{e}的货币是{v}。",
            "在{e}买东西要用{v}。",
            "{e}的商品用{v}标价。",
            "{e}：货币{v}",
            "{e}的钱叫{v}。",
            "关于{e}：\n{v}是它的货币。",
        ),
        "symbol": (
            "{e}的化学符号是{v}。",
            "{v}是{e}的符号。",
            "{e}用符号{v}表示。",
            "{e}：符号{v}",
            "化学家把{e}写成{v}。",
            "元素{e}记作{v}。",
            "关于{e}：\n{v}是它的符号。",
        ),
        "opposite": (
            "“{e}”的反义词是“{v}”。",
            "“{v}”是“{e}”的反义词。",
            "“{e}”和“{v}”意思相反。",
            "{e}：反义词{v}",
            "与“{e}”相反的是“{v}”。",
            "关于“{e}”：\n{v}是它的反义词。",
        ),
        "category": (
            "{e}：一种{v}",
            "“{e}”是一种{v}。",
            "{v}：比如{e}。",
            "关于“{e}”：\n{v}是它的类别。",
            "“{e}”的类别是{v}。",
        ),
    },
}
_ASKED = {
    "en": {
        "capital": ("What is the capital of {e}?", "Name the capital of {e}.", "Which city is the capital of {e}?"),
        "continent": ("On which continent is {e}?", "Name the continent of {e}.", "Where in the world is {e}?"),
        "currency": ("What is the currency of {e}?", "Name the currency of {e}.", "How do people pay in {e}?"),
        "symbol": ("What is the symbol of {e}?", "Give the symbol of {e}.", "How do chemists write {e}?"),
        "opposite": (
            'What is the opposite of "{e}"?',
            'Give the opposite of "{e}".',
            'Which word is the opposite of "{e}"?',
        ),
        "category": ('What kind of thing is "{e}"?', 'Name the kind of "{e}".', 'What does "{e}" belong to?'),
    },
    "zh": {
        "capital": ("{e}的首都是哪里？", "说出{e}的首都。", "哪个城市是{e}的首都？"),
        "continent": ("{e}在哪个大洲？", "说出{e}所在的大洲。", "{e}位于哪里？"),
        "currency": ("{e}的货币是什么？", "说出{e}的货币。", "在{e}用什么钱？"),
        "symbol": ("{e}的化学符号是什么？", "写出{e}的符号。", "化学家怎么写{e}？"),
        "opposite": ("“{e}”的反义词是什么？", "说出“{e}”的反义词。", "哪个词和“{e}”相反？"),
        "category": ("“{e}”是哪一类东西？", "说出“{e}”的类别。", "“{e}”属于什么？"),
    },
}
_TRANSLATED = (
    '"{en}" in Chinese is "{zh}".',
    '"{zh}" in English is "{en}".',
    'The Chinese word for "{en}" is "{zh}".',
    'The English word for "{zh}" is "{en}".',
    "{en}: {zh}",
    "{zh}: {en}",
    "“{en}”用中文说是“{zh}”。",
    "“{zh}”用英语说是“{en}”。",
    "“{en}”的意思是“{zh}”。",
    "“{zh}”的英文是“{en}”。",
    "{en}\n{zh}",
    "{zh}\n{en}",
)
_TRANSLATION_ASKED = {
    ("en", "to zh"): (
        'What is "{en}" in Chinese?',
        'Translate "{en}" into Chinese.',
        'How do you say "{en}" in Chinese?',
    ),
    ("en", "to en"): (
        'What is "{zh}" in English?',
        'Translate "{zh}" into English.',
        'How do you say "{zh}" in English?',
    ),
    ("zh", "to zh"): ("“{en}”用中文怎么说？", "把“{en}”翻译成中文。", "“{en}”的中文是什么？"),
    ("zh", "to en"): ("“{zh}”用英语怎么说？", "把“{zh}”翻译成英语。", "“{zh}”的英文是什么？"),
}


def relations(language: str) -> dict[str, list[tuple[str, str, str]]]:
    """Relation -> [(key, entity, value)]; the key, the same in both languages, decides what is held out."""
    column = 0 if language == "en" else 1
    keys = [english for english, _ in OPPOSITES_OF["en"]]
    opposites = [(key, *pair) for key, pair in zip(keys, OPPOSITES_OF[language], strict=True)]
    categories = [(row[0], row[column], row[2 + column]) for row in CATEGORY_OF]
    return RELATIONS_OF[language] | {"opposite": opposites, "category": categories}


def _wording_apart(language: str, relation: str, key: str, wordings: Sequence[str]) -> int | None:
    """The wording in which training never asks for a fact; in the others it may, and the fact itself is taught."""
    return wording_apart("fact", f"{language} {relation} {key}", len(wordings))


def answer(relation: str, value: str, language: str) -> str:
    """The reference answer to a question about a fact."""
    if language == "en" and relation == "currency":
        value = f"the {value}"
    if language == "en" and relation == "category":
        value = f"{'an' if value[0] in 'aeiou' else 'a'} {value}"
    return it_is(value, language)


def taught_wordings(language: str, relation: str, key: str) -> list[str]:
    """The wordings in which training may ask for a fact, with a gap {e}."""
    wordings = _ASKED[language][relation]
    apart = _wording_apart(language, relation, key, wordings)
    return [wording for place, wording in enumerate(wordings) if place != apart]


def pretraining(dice: Dice) -> list[str]:
    documents = []
    for language in ("en", "zh"):
        for _ in range(3):
            loose, about = [], {}
            for relation, facts in relations(language).items():
                for _, entity, value in facts:
                    lines = [
                        sentence(form.format(e=entity, v=value))
                        if relation not in ("symbol", "opposite", "category")
                        else form.format(e=entity, v=value)
                        for form in _STATED[language][relation]
                    ]
                    half = dice.shuffled(lines)
                    about.setdefault(entity, []).extend(half[: len(half) // 2])
                    loose.extend(half[len(half) // 2 :])
            documents += ["\n".join(dice.shuffled(lines)) for lines in about.values()]
            documents += in_documents(dice, loose, 6, 12)
    translated = [form.format(en=en, zh=zh) for en, zh in WORDS for form in _TRANSLATED for _ in range(2)]
    translated += [
        form.format(en=en, zh=zh)
        for (en, _), (zh, _) in zip(OPPOSITES_OF["en"], OPPOSITES_OF["zh"], strict=True)
        for form in _TRANSLATED[:6]
    ]
    return documents + in_documents(dice, translated, 8, 14)


def _questions(kind: str, language: str, relations_asked: tuple[str, ...]) -> list[Question]:
    rows = []
    for relation in relations_asked:
        for key, entity, value in relations(language)[relation]:
            wordings = _ASKED[language][relation]
            apart = _wording_apart(language, relation, key, wordings)
            for place, wording in enumerate(wordings):
                messages = ask(wording.format(e=entity), answer(relation, value, language))
                rows.append(Question(kind, relation, language, messages, place == apart))
    return rows


def fact_questions(dice: Dice, language: str) -> list[Question]:
    return _questions("facts", language, ("capital", "continent", "currency", "symbol"))


def word_questions(dice: Dice, language: str) -> list[Question]:
    return _questions("words", language, ("opposite", "category"))


def translation_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for en, zh in WORDS:
        for direction, word in (("to zh", zh), ("to en", en)):
            wordings = _TRANSLATION_ASKED[language, direction]
            apart = _wording_apart(language, direction, en, wordings)
            for place, wording in enumerate(wordings):
                messages = ask(wording.format(en=en, zh=zh), word)
                rows.append(Question("translation", direction, language, messages, place == apart))
    return rows
