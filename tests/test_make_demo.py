"""The bundled demo data: reproducible, well-formed, correct, and without leaks into the held-out set."""

import filecmp
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from programs import PATIENCE

pytestmark = pytest.mark.slow

DATASET = Path(__file__).resolve().parent.parent / "dataset"
FILES = ("pretrain_demo.jsonl", "sft_demo.jsonl", "sft_demo_heldout.jsonl")
KINDS = {
    "identity", "arithmetic", "facts", "words", "units", "strings", "format", "follow_up", "refusal", "comparison",
    "sequence", "translation",
}  # fmt: skip
# a sum in any notation of the data; matches may overlap, so "1 + 2 + 3" gives both its sums
SUM = re.compile(r"(?<!\d)(?=(\d+) ?(\+|-|\*|plus|minus|times|加|减|乘以) ?(\d+))")
SIGN = {"plus": "+", "加": "+", "minus": "-", "减": "-", "times": "*", "乘以": "*"}
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def run_script(out_dir: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DATASET / "make_demo.py"), "--out_dir", str(out_dir)]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=PATIENCE)


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATASET / name).read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [row["text"] for row in read("pretrain_demo.jsonl")]


@pytest.fixture(scope="module")
def training() -> list[dict]:
    return read("sft_demo.jsonl")


@pytest.fixture(scope="module")
def held_out() -> list[dict]:
    return read("sft_demo_heldout.jsonl")


def of_kind(rows: list[dict], kind: str) -> list[tuple[str, str]]:
    """Returns (last question, reference answer) of the rows of a kind."""
    return [(row["conversations"][-2]["content"], row["conversations"][-1]["content"])
            for row in rows if row["kind"] == kind]  # fmt: skip


def sums_in(text: str) -> set[tuple[int, str, int]]:
    """Returns the sums in a text; b + a counts as a + b, the larger number first."""
    found = {(int(a), SIGN.get(sign, sign), int(b)) for a, sign, b in SUM.findall(text)}
    return {(max(a, b), sign, min(a, b)) if sign in "+*" else (a, sign, b) for a, sign, b in found}


def test_script_writes_the_bundled_files_byte_for_byte(tmp_path):
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stderr
    for name in FILES:
        assert filecmp.cmp(tmp_path / name, DATASET / name, shallow=False), f"{name} is not what make_demo.py writes"
    assert re.search(r"^all +\d+ +\d+ +210 +210$", done.stdout, re.MULTILINE)


def test_unusable_out_dir_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run_script(tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("make_demo.py: error: --out_dir ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", FILES)
def test_files_are_utf8_with_unix_line_ends(name):
    raw = (DATASET / name).read_bytes()
    assert b"\r" not in raw and raw.endswith(b"\n") and b"\n\n" not in raw and not raw.startswith(b"\xef\xbb\xbf")
    raw.decode("utf-8")
    assert b"<|" not in raw


def test_pretraining_rows_have_text_in_both_languages(texts):
    assert (DATASET / "pretrain_demo.jsonl").stat().st_size <= 5_000_000
    assert all(set(row) == {"text"} for row in read("pretrain_demo.jsonl"))
    assert all(text.strip() for text in texts)
    for letters in (r"[a-z]{3}", r"[\u4e00-\u9fff]{2}"):
        assert sum(bool(re.search(letters, text)) for text in texts) > 0.4 * len(texts)


def test_sft_rows_have_the_schema(training, held_out):
    for row in training + held_out:
        assert set(row) == {"conversations", "kind", "language"}
        roles = [message["role"] for message in row["conversations"]]
        assert roles[roles[0] == "system" :] == ["user", "assistant"] * (len(roles) // 2)
        for message in row["conversations"]:
            assert set(message) - {"reasoning_content"} == {"role", "content"}
            assert message["content"] == message["content"].strip() != ""
            assert message["role"] == "assistant" or "reasoning_content" not in message
        chinese = any(
            re.search(r"[\u4e00-\u9fff、？。]", m["content"]) for m in row["conversations"] if m["role"] == "user"
        )
        assert chinese or row["language"] == "en"
    assert {row["kind"] for row in training} == KINDS
    assert 8_000 <= len(training) <= 9_500
    thinking = [row for row in training if "reasoning_content" in row["conversations"][-1]]
    assert 0.015 < len(thinking) / len(training) < 0.03


def test_held_out_set_is_balanced(held_out):
    assert Counter(row["kind"] for row in held_out) == dict.fromkeys(KINDS, 35)
    assert Counter(row["language"] for row in held_out) == {"en": 210, "zh": 210}
    assert set(Counter((row["kind"], row["language"]) for row in held_out).values()) == {17, 18}
    assert not [row for row in held_out if "reasoning_content" in row["conversations"][-1]]


def test_no_held_out_prompt_occurs_in_training(training, held_out):
    def prompts(rows: list[dict]) -> list[str]:
        return [json.dumps([[m["role"], m["content"].lower()] for m in row["conversations"][:-1]]) for row in rows]

    assert not set(prompts(held_out)) & set(prompts(training))
    assert len(set(prompts(held_out))) == len(held_out)


def test_held_out_sums_are_stated_in_pretraining_but_never_asked(texts, training, held_out):
    wanted = set().union(*(sums_in(question) for question, _ in of_kind(held_out, "arithmetic")))
    assert 20 < len(wanted) <= 35  # one sum may be asked in both languages
    asked = set()
    for row in training:
        for message in row["conversations"]:
            asked |= sums_in(message["content"]) | sums_in(message.get("reasoning_content", ""))
    stated = set()
    for text in texts:
        asked |= sums_in("\n".join(re.findall(r"^(?:Question:|问：)\n(.*)$", text, re.MULTILINE)))
        stated |= sums_in(text)
    assert len(asked) > 250
    assert not wanted & asked
    assert wanted <= stated


def test_no_held_out_question_is_asked_in_the_pretraining_text(texts, held_out):
    """Pretraining text has questions in plain text; no held-out question may be among them with its history."""
    labels = {
        "en": {"system": "Instruction:", "user": "Question:", "assistant": "Answer:"},
        "zh": {"system": "要求：", "user": "问：", "assistant": "答："},
    }
    everything = "\n".join(texts)
    assert everything.count("\nAnswer:\n") > 10_000 and everything.count("\n答：\n") > 10_000
    for row in held_out:
        asked = [f"{labels[row['language']][m['role']]}\n{m['content']}" for m in row["conversations"][:-1]]
        assert "\n".join(asked) + "\n" not in everything, asked


ASKED_ABOUT = re.compile(
    r'["“](.+)["”]|(?:capital|currency|continent|symbol) of (.+)[?.]$|^.*(?:is|in|write) (.+)\?$|(\d+)|'
    r"(?:哪个城市是|化学家怎么写)(.+?)(?:的首都)?？|(?:说出|写出|在)?(.+?)(?:的|所在|在|位于|用什么钱)"
)


def test_held_out_facts_are_taught_with_other_wording(training, held_out):
    """Training has another question about the same subject with the same answer."""
    for kind in ("facts", "words", "translation", "units"):
        taught = of_kind(training, kind)
        for question, answer in of_kind(held_out, kind):
            entity = next(filter(None, ASKED_ABOUT.search(question).groups()))
            same = [other for other, its_answer in taught if entity in other and its_answer == answer]
            assert same and question not in same, (question, entity)


def test_all_sums_are_correct(texts, training, held_out):
    stated = re.compile(
        r"(?<![\d*+-] )(?<!\d)(\d+) ?(\+|-|\*|plus|minus|times|加|减|乘以) ?(\d+)(?: = | is |等于)(\d+)"
    )
    found = [match for text in texts for match in stated.findall(text)]
    assert len(found) > 5_000
    for a, sign, b, value in found:
        assert APPLY[SIGN.get(sign, sign)](int(a), int(b)) == int(value), f"{a} {sign} {b} = {value}"
    for question, answer in of_kind(training + held_out, "arithmetic"):
        ((a, sign, b),) = SUM.findall(question)
        assert answer == str(APPLY[SIGN.get(sign, sign)](int(a), int(b))), question


def test_reasoning_computes_the_sum(training):
    for row in training:
        thought = row["conversations"][-1].get("reasoning_content")
        if thought:
            ones, tens = (part.split("=")[-1] for part in re.findall(r"[^.。]*=[^.。]*", thought))
            assert int(row["conversations"][-1]["content"]) == int(tens) * 10 + int(ones) % 10
            for left, right in re.findall(r"(\d[\d +-]*) = (\d+)", thought):
                assert sum(int(n) for n in re.findall(r"[+-]?\d+", left.replace(" ", ""))) == int(right)


FACTORS = {
    ("hours", "minutes"): 60, ("minutes", "seconds"): 60, ("days", "hours"): 24, ("weeks", "days"): 7,
    ("years", "months"): 12, ("metres", "centimetres"): 100, ("centimetres", "millimetres"): 10,
    ("kilometres", "metres"): 1000, ("kilograms", "grams"): 1000,
    ("yuan", "jiao"): 10, ("小时", "分钟"): 60, ("分钟", "秒"): 60, ("天", "小时"): 24, ("周", "天"): 7,
    ("年", "个月"): 12, ("米", "厘米"): 100, ("厘米", "毫米"): 10, ("公里", "米"): 1000, ("公斤", "克"): 1000,
    ("元", "角"): 10,
}  # fmt: skip


def test_unit_conversions_are_correct(training, held_out):
    for question, answer in of_kind(training + held_out, "units"):
        count, large = re.search(r"(\d+) ?([a-z]+|个?[\u4e00-\u9fff]+?)(?:\?| to | in |是|等于|换)", question).groups()
        value, small = re.fullmatch(r"(\d+) ?(\D+)", answer).groups()
        assert int(value) == int(count) * FACTORS[large, small], question


def test_list_tasks_are_correct(training, held_out):
    checked = Counter()
    counted = {"两": 2, "三": 3, "四": 4}
    for question, answer in of_kind(training + held_out, "strings"):
        comma, plus, stop = (", ", " + ", ".") if question.isascii() else ("、", "+", "。")
        repeat = re.search(r"word (\w+) (\d) times|把“(.+)”[写说](.)遍", question)
        if repeat:
            word, times = repeat[1] or repeat[3], repeat[2] or counted[repeat[4]]
            assert answer.removeprefix("Here: ") == comma.join([word] * int(times)) + stop, question
            continue
        words = re.split(", |、", re.sub(r"^.*?[:：]|[?？.。]$", "", question).strip())
        for signs, expected in {
            "last word|最后一个": f"It is {words[-1]}." if question.isascii() else f"{words[-1]}。",
            "first word|第一个": f"It is {words[0]}." if question.isascii() else f"{words[0]}。",
            "Reverse|backwards|倒": comma.join(reversed(words)) + stop,
            "plus|加号": plus.join(words) + stop,
        }.items():
            if re.search(signs, question):
                checked[signs] += 1
                assert re.sub("^(Reversed|Joined): ", "", answer) == expected, question
    assert len(checked) == 4 and min(checked.values()) > 80


def test_number_sequences_and_comparisons_are_correct(training, held_out):
    for question, answer in of_kind(training + held_out, "sequence"):
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        if numbers:
            assert int(answer) == 2 * numbers[-1] - numbers[-2] and len(numbers) == 3, question
    for question, answer in of_kind(training + held_out, "comparison"):
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        if numbers:
            choose = min if "smaller" in question or "小" in question else max
            assert answer == str(choose(numbers)), question


def test_answers_have_the_requested_format(training, held_out):
    looks = {
        "JSON": r'\{"answer": "[^"]+"\}', '"Answer:"': r"Answer: .+", "exclamation": r"It is .+!",
        "twice": r"It is (.+), \1\.", '"Well"': r"Well, it is .+\.", "答案：": r"答案：.+", "感叹号": r".+！",
        "两遍": r"(.+)，\1。", "好的": r"好的，.+。",
    }  # fmt: skip
    for row in training + held_out:
        if row["kind"] == "format":
            system, *_, answer = (message["content"] for message in row["conversations"])
            (look,) = [look for sign, look in looks.items() if sign in system]
            assert re.fullmatch(look, answer), (system, answer)


def test_follow_up_answers_use_the_previous_turn(training, held_out):
    for row in training + held_out:
        if row["kind"] == "follow_up":
            first, reply, then, answer = (message["content"] for message in row["conversations"])
            more = re.search(r"Add (\d) to that|再加(\d)", then)
            if more:
                assert int(answer) == int(reply) + int(more[1] or more[2])
            elif reply in ("I will remember that.", "我记住了。"):
                said = re.sub("^I ", "You ", first).replace("My ", "Your ").replace("我", "你")
                assert answer == said


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "It is Paris."),
        ("日本的首都是哪里？", "东京。"),
        ("What is the symbol of gold?", "It is Au."),
        ("“苹果”用英语怎么说？", "apple"),
        ("Hi! Who are you?", "I am Mini, a small language model."),
        ("What comes next: a, b, c?", "It is d."),
        ("明天谁会赢比赛？", "我无法知道未来的事。"),
    ],
)
def test_sample_questions_have_the_expected_answers(training, held_out, question, answer):
    answers = {
        row["conversations"][-1]["content"]
        for row in training + held_out
        if row["kind"] != "format" and row["conversations"][-2]["content"] == question
    }
    assert answers == {answer}
