"""Sums and differences up to 20, written with a space around each sign; the times table in pretraining only."""

from collections.abc import Iterator

from demo.common import Dice, Question, ask, held_out, in_documents

LARGEST = 20
LANGUAGE_COLUMN = {"en": 0, "zh": 1}
SIGNS = {"+": ("plus", "加"), "-": ("minus", "减"), "*": ("times", "乘以")}
_ASKED = {
    "en": ("What is {a} {sign} {b}?", "Calculate {a} {sign} {b}.", "How much is {a} {word} {b}?"),
    "zh": ("{a} {sign} {b} 等于多少？", "计算 {a} {sign} {b}。", "{a}{word}{b}是多少？"),
}
_STATED = ("{a} {sign} {b} = {c}", "{a} {sign} {b} = {c}", "{a} {en} {b} is {c}", "{a}{zh}{b}等于{c}")


def result(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def is_held_out(a: int, sign: str, b: int) -> bool:
    """Held-out sums are asked in neither training file, in neither order; the pretraining text states them, as it
    states facts. Sums of two numbers below 10 are all asked."""
    if sign == "*" or max(a, b) < 10:
        return False
    first, second = (max(a, b), min(a, b)) if sign == "+" else (a, b)
    return held_out("arithmetic", f"{first} {sign} {second}", one_in=6)


def _sums() -> Iterator[tuple[int, str, int]]:
    for a in range(1, LARGEST + 1):
        for b in range(1, LARGEST + 1):
            if a + b <= LARGEST:
                yield a, "+", b
            if b <= a:
                yield a, "-", b


def taught() -> list[tuple[int, str, int]]:
    """Every sum that training may contain."""
    return [sum_ for sum_ in _sums() if not is_held_out(*sum_)]


def worked(a: int, sign: str, b: int, language: str) -> str:
    """The written method for numbers below 100: the ones, then the tens with what was carried or borrowed."""
    ones_a, ones_b, tens_a, tens_b = a % 10, b % 10, a // 10, b // 10
    carry = ones_a + ones_b > 9 if sign == "+" else ones_a < ones_b
    shown = ones_a + 10 if carry and sign == "-" else ones_a
    ones = f"{shown} {sign} {ones_b} = {result(shown, sign, ones_b)}"
    tens = f"{tens_a} {sign} {tens_b}{f' {sign} 1' if carry else ''} = {result(a, sign, b) // 10}"
    return f"Ones: {ones}. Tens: {tens}." if language == "en" else f"个位：{ones}。十位：{tens}。"


def _worked_is_allowed(a: int, sign: str, b: int) -> bool:
    """The borrowed ones, such as 13 - 7, must not be a held-out sum either."""
    return sign == "+" or a % 10 >= b % 10 or not is_held_out(a % 10 + 10, "-", b % 10)


def pretraining(dice: Dice) -> list[str]:
    lines = []
    for a, sign, b in _sums():
        en, zh = SIGNS[sign]
        for form in _STATED * 6:
            lines.append(form.format(a=a, b=b, c=result(a, sign, b), sign=sign, en=en, zh=zh))
    for _ in range(2):
        for a in range(1, 10):
            lines.extend(f"{a} * {b} = {a * b}" for b in range(1, 10))
    explained = []
    allowed = [sum_ for sum_ in taught() if _worked_is_allowed(*sum_) and sum_[0] > 9]
    for a, sign, b in dice.sample(allowed, min(200, len(allowed))):
        language = dice.pick(("en", "zh"))
        so, stop = ("So", ".") if language == "en" else ("所以", "。")
        end = f"{so} {a} {sign} {b} = {result(a, sign, b)}{stop}"
        explained.append(f"{a} {sign} {b}\n{worked(a, sign, b, language)}\n{end}")
    return in_documents(dice, lines, 12, 20) + in_documents(dice, explained, 2, 4)


def _task(a: int, sign: str, b: int) -> str:
    size = "two digits" if min(a, b) >= 10 else "one digit"
    return f"{'add' if sign == '+' else 'subtract'} {size}"


def questions(dice: Dice, language: str) -> list[Question]:
    rows = []
    for a, sign, b in _sums():
        word = SIGNS[sign][LANGUAGE_COLUMN[language]]
        answer, out = str(result(a, sign, b)), is_held_out(a, sign, b)
        for wording in _ASKED[language]:
            text = wording.format(a=a, b=b, sign=sign, word=word)
            rows.append(Question("arithmetic", _task(a, sign, b), language, ask(text, answer), out))
    return rows


def thinking_questions(dice: Dice, language: str, count: int) -> list[Question]:
    """Training rows whose assistant thinks before it answers; the sums are among those taught anyway."""
    rows = []
    for a, sign, b in dice.sample([s for s in taught() if max(s[0], s[2]) > 9 and _worked_is_allowed(*s)], count):
        word = SIGNS[sign][LANGUAGE_COLUMN[language]]
        text = dice.pick(_ASKED[language]).format(a=a, b=b, sign=sign, word=word)
        messages = ask(text, str(result(a, sign, b)))
        rows.append(
            Question("arithmetic", "thinking", language, messages, False, reasoning=worked(a, sign, b, language))
        )
    return rows
