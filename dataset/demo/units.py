"""Converting lengths, weights, volumes, times and money."""

from demo.common import Dice, Question, ask, held_out, in_documents

# larger unit and smaller unit, each English and Chinese; how many smaller make a larger; taught from 2 up to how many
_UNITS = (
    ("hours", "小时", "minutes", "分钟", 60, 12),
    ("minutes", "分钟", "seconds", "秒", 60, 12),
    ("days", "天", "hours", "小时", 24, 7),
    ("weeks", "周", "days", "天", 7, 15),
    ("years", "年", "months", "个月", 12, 12),
    ("metres", "米", "centimetres", "厘米", 100, 60),
    ("centimetres", "厘米", "millimetres", "毫米", 10, 60),
    ("kilometres", "公里", "metres", "米", 1000, 60),
    ("kilograms", "公斤", "grams", "克", 1000, 60),
    ("litres", "升", "millilitres", "毫升", 1000, 60),
    ("yuan", "元", "jiao", "角", 10, 60),
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
    "en": ("How many {small} are {n} {large}?", "Convert {n} {large} to {small}."),
    "zh": ("{n}{large}是多少{small}？", "把{n}{large}换算成{small}。"),
}


def _conversions(language: str) -> list[tuple[str, dict]]:
    """(key, fields of the wordings) of every conversion that is taught."""
    found = []
    for large_en, large_zh, small_en, small_zh, factor, limit in _UNITS:
        large, small = (large_en, small_en) if language == "en" else (large_zh, small_zh)
        for n in range(2, limit + 1):
            key = f"{n} {large_en} to {small_en}"
            found.append((key, {"n": n, "m": n * factor, "large": large, "small": small, "factor": factor}))
    return found


def pretraining(dice: Dice) -> list[str]:
    documents = []
    for language in ("en", "zh"):
        lines = []
        for _, fields in _conversions(language):
            for form in _STATED[language]:
                times = 1 if fields["factor"] % 10 == 0 and fields["factor"] != 60 else 3
                lines += [form.format(**fields)] * times
        documents += in_documents(dice, lines, 6, 12)
    return documents


def questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for key, fields in _conversions(language):
        for form in _ASKED[language]:
            answer = f"{fields['m']} {fields['small']}" if language == "en" else f"{fields['m']}{fields['small']}"
            task = "decimal" if fields["factor"] in (10, 100, 1000) else "time"
            out = held_out("units", key, one_in=8)
            rows.append(Question("units", task, language, ask(form.format(**fields), answer), out))
    return rows
