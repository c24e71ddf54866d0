"""Converting lengths, weights, times and money."""

from demo.common import Dice, Question, ask, in_documents, wording_apart

_LARGEST = 12
# larger unit and smaller unit, each English and Chinese; how many smaller make a larger
_UNITS = (
    ("hours", "小时", "minutes", "分钟", 60),
    ("minutes", "分钟", "seconds", "秒", 60),
    ("days", "天", "hours", "小时", 24),
    ("weeks", "周", "days", "天", 7),
    ("years", "年", "months", "个月", 12),
    ("metres", "米", "centimetres", "厘米", 100),
    ("centimetres", "厘米", "millimetres", "毫米", 10),
    ("kilometres", "公里", "metres", "米", 1000),
    ("kilograms", "公斤", "grams", "克", 1000),
    ("yuan", "元", "jiao", "角", 10),
)
_STATED = {
    "en": (
        "{n} {large} are {m} {small}.",
        "{m} {small} make {n} {large}.",
        "{n} {large} = {m} {small}",
        "Something of {n} {large} has {m} {small}.",
        "From {n} {large} to {small}:\n{m} {small}.",
    ),
    "zh": (
        "{n}{large}是{m}{small}。",
        "{m}{small}就是{n}{large}。",
        "{n}{large} = {m}{small}",
        "{n}{large}有{m}{small}。",
        "{n}{large}换成{small}：\n{m}{small}。",
    ),
}
_ASKED = {
    "en": (
        "How many {small} are {n} {large}?",
        "Convert {n} {large} to {small}.",
        "Write {n} {large} in {small}.",
    ),
    "zh": ("{n}{large}是多少{small}？", "把{n}{large}换算成{small}。", "{n}{large}等于多少{small}？"),
}


def _conversions(language: str) -> list[tuple[str, dict]]:
    """(key, fields of the wordings) of every conversion that is taught."""
    found = []
    for large_en, large_zh, small_en, small_zh, factor in _UNITS:
        large, small = (large_en, small_en) if language == "en" else (large_zh, small_zh)
        for n in range(2, _LARGEST + 1):
            key = f"{n} {large_en} to {small_en}"
            found.append((key, {"n": n, "m": n * factor, "large": large, "small": small, "factor": factor}))
    return found


def pretraining(dice: Dice) -> list[str]:
    documents = []
    for language in ("en", "zh"):
        lines = []
        for _, fields in _conversions(language):
            for form in _STATED[language]:
                lines += [form.format(**fields)] * 2
        documents += in_documents(dice, lines, 6, 12)
    return documents


def questions(dice: Dice, language: str) -> list[Question]:
    rows, wordings = [], _ASKED[language]
    for key, fields in _conversions(language):
        apart = wording_apart("units", f"{language} {key}", len(wordings))
        answer = f"{fields['m']} {fields['small']}" if language == "en" else f"{fields['m']}{fields['small']}"
        for place, wording in enumerate(wordings):
            messages = ask(wording.format(**fields), answer)
            rows.append(Question("units", f"times {fields['factor']}", language, messages, place == apart))
    return rows
