"""Facts from tables (countries, elements, opposites, categories) and translations of common words."""

from demo.atlas import RELATIONS_OF
from demo.common import Dice, Question, ask, held_out, in_documents, sentence
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
        "language": (
            "The language of {e} is {v}.",
            "People in {e} speak {v}.",
            "{v} is the language of {e}.",
            "{e}: language {v}",
            "In {e} you hear {v} in the street.",
            "About {e}:\n{v} is its language.",
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
        "language": (
            "{e}的语言是{v}。",
            "{e}人说{v}。",
            "{v}是{e}的语言。",
            "{e}：语言{v}",
            "在{e}的街上能听到{v}。",
            "关于{e}：\n{v}是它的语言。",
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
        "capital": ("What is the capital of {e}?", "Name the capital of {e}."),
        "continent": ("On which continent is {e}?", "Name the continent of {e}."),
        "currency": ("What is the currency of {e}?", "Name the currency of {e}."),
        "language": ("What is the language of {e}?", "Name the language of {e}."),
        "symbol": ("What is the chemical symbol of {e}?", "Give the symbol of {e}."),
        "opposite": ('What is the opposite of "{e}"?', 'Give the opposite of "{e}".'),
        "category": ('What kind of thing is "{e}"?',),
    },
    "zh": {
        "capital": ("{e}的首都是哪里？", "说出{e}的首都。"),
        "continent": ("{e}在哪个大洲？", "说出{e}所在的大洲。"),
        "currency": ("{e}的货币是什么？", "说出{e}的货币。"),
        "language": ("{e}的语言是什么？", "说出{e}的语言。"),
        "symbol": ("{e}的化学符号是什么？", "写出{e}的符号。"),
        "opposite": ("“{e}”的反义词是什么？", "说出“{e}”的反义词。"),
        "category": ("“{e}”是哪一类东西？",),
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
    ("en", "to zh"): ('What is "{en}" in Chinese?', 'Translate "{en}" into Chinese.'),
    ("en", "to en"): ('What is "{zh}" in English?', 'Translate "{zh}" into English.'),
    ("zh", "to zh"): ("“{en}”用中文怎么说？", "把“{en}”翻译成中文。"),
    ("zh", "to en"): ("“{zh}”用英语怎么说？", "把“{zh}”翻译成英语。"),
}


def relations(language: str) -> dict[str, list[tuple[str, str, str]]]:
    """Relation -> [(key, entity, value)]; the key, the same in both languages, decides what is held out."""
    column = 0 if language == "en" else 1
    keys = [english for english, _ in OPPOSITES_OF["en"]]
    opposites = [(key, *pair) for key, pair in zip(keys, OPPOSITES_OF[language], strict=True)]
    categories = [(row[0], row[column], row[2 + column]) for row in CATEGORY_OF]
    return RELATIONS_OF[language] | {"opposite": opposites, "category": categories}


def is_held_out(relation: str, key: str) -> bool:
    return held_out(relation, key, one_in=8)


def asked(dice: Dice, language: str, relation: str, entity: str) -> str:
    return dice.pick(_ASKED[language][relation]).format(e=entity)


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


def fact_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for relation, facts in relations(language).items():
        for key, entity, value in facts:
            for form in _ASKED[language][relation]:
                text = form.format(e=entity)
                rows.append(Question("facts", relation, language, ask(text, value), is_held_out(relation, key)))
    return rows


def translation_questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for en, zh in WORDS:
        for direction, answer in (("to zh", zh), ("to en", en)):
            for form in _TRANSLATION_ASKED[language, direction]:
                out = held_out(direction, en, one_in=8)
                rows.append(Question("translation", direction, language, ask(form.format(en=en, zh=zh), answer), out))
    return rows
