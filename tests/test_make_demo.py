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

DATASET = Path(__file__).resolve().parent.parent / "dataset"
FILES = ("pretrain_demo.jsonl", "sft_demo.jsonl", "sft_demo_heldout.jsonl")
KINDS = {
    "identity", "arithmetic", "facts", "units", "strings", "format", "follow_up", "refusal", "comparison", "sequence",
    "translation", "lookup",
}  # fmt: skip
# a sum in any of the ways that the data writes one; found at every place, so that "1 + 2 + 3" gives both its sums
SUM = re.compile(r"(?<!\d)(?=(\d+) ?(\+|-|\*|plus|minus|times|加|减|乘以) ?(\d+))")
SIGN = {"plus": "+", "加": "+", "minus": "-", "减": "-", "times": "*", "乘以": "*"}
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def run_script(out_dir: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DATASET / "make_demo.py"), "--out_dir", str(out_dir)]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=120)


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
    """(last question, reference answer) of the rows of a kind."""
    return [(row["conversations"][-2]["content"], row["conversations"][-1]["content"])
            for row in rows if row["kind"] == kind]  # fmt: skip


def sums_in(text: str) -> set[tuple[int, str, int]]:
    """The sums that a text writes; of a + b and b + a only the one with the larger number first."""
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
def test_files_are_utf8_lines_with_lf(name):
    raw = (DATASET / name).read_bytes()
    assert b"\r" not in raw and raw.endswith(b"\n") and b"\n\n" not in raw and not raw.startswith(b"\xef\xbb\xbf")
    raw.decode("utf-8")
    assert b"<|" not in raw


def test_pretraining_rows(texts):
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
    assert 7000 <= len(training) <= 8500
    thinking = [row for row in training if "reasoning_content" in row["conversations"][-1]]
    assert 0.02 < len(thinking) / len(training) < 0.04


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


def test_no_held_out_sum_is_asked_anywhere_and_all_are_stated(texts, training, held_out):
    wanted = set().union(*(sums_in(question) for question, _ in of_kind(held_out, "arithmetic")))
    assert 20 < len(wanted) <= 35  # one sum may be asked in both languages
    asked = set()
    for row in training:
        for message in row["conversations"]:
            asked |= sums_in(message["content"]) | sums_in(message.get("reasoning_content", ""))
    lines = [line for text in texts for line in text.split("\n")]
    for line in lines:
        if line.startswith(("Question: ", "问：")):
            asked |= sums_in(line)
    assert len(asked) > 600
    assert not wanted & asked
    assert wanted <= set().union(*map(sums_in, lines))


def test_no_held_out_question_is_asked_in_the_pretraining_text(texts, held_out):
    """The pretraining text asks in plain text; a question with all that stands before it must not be there."""
    labels = {
        "en": {"system": "Instruction: ", "user": "Question: ", "assistant": "Answer: "},
        "zh": {"system": "要求：", "user": "问：", "assistant": "答："},
    }
    everything = "\n".join(texts)
    assert everything.count("\nAnswer: ") > 10_000 and everything.count("\n答：") > 10_000
    for row in held_out:
        asked = [labels[row["language"]][m["role"]] + m["content"] for m in row["conversations"][:-1]]
        assert "\n".join(asked) + "\n" not in everything, asked


def test_held_out_facts_are_stated_in_the_pretraining_text_only(texts, training, held_out):
    lines = {line for text in texts for line in re.split(r"\n(?!\S+ is its|.+是它)", text)}
    taught = {(question, answer) for question, answer in of_kind(training, "facts")}
    for question, answer in of_kind(held_out, "facts"):
        assert (question, answer) not in taught
        quoted = re.search(r'["“](.+)["”]', question)
        named = re.search(
            r".* (?:of|is) (.+)[.?]$|^(?:说出|写出)?(.+?)(?:的(?:首都|货币|语言|化学符号|符号)|所?在)", question
        )
        entity = quoted[1] if quoted else next(filter(None, named.groups()))
        stated = [line for line in lines if entity.lower() in line.lower() and answer in line]
        assert len(stated) >= 4, f"{question} {answer}: stated {len(stated)} times"


def test_sums_are_right_everywhere(texts, training, held_out):
    stated = re.compile(
        r"(?<![\d*+-] )(?<!\d)(\d+) ?(\+|-|\*|plus|minus|times|加|减|乘以) ?(\d+)(?: = | is |等于)(\d+)"
    )
    found = [match for text in texts for match in stated.findall(text)]
    assert len(found) > 8_000
    for a, sign, b, value in found:
        assert APPLY[SIGN.get(sign, sign)](int(a), int(b)) == int(value), f"{a} {sign} {b} = {value}"
    for question, answer in of_kind(training + held_out, "arithmetic"):
        ((a, sign, b),) = SUM.findall(question)
        assert answer == str(APPLY[SIGN.get(sign, sign)](int(a), int(b))), question


def test_thinking_works_the_sum_out(training):
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
    ("kilometres", "metres"): 1000, ("kilograms", "grams"): 1000, ("litres", "millilitres"): 1000,
    ("yuan", "jiao"): 10, ("小时", "分钟"): 60, ("分钟", "秒"): 60, ("天", "小时"): 24, ("周", "天"): 7,
    ("年", "个月"): 12, ("米", "厘米"): 100, ("厘米", "毫米"): 10, ("公里", "米"): 1000, ("公斤", "克"): 1000,
    ("升", "毫升"): 1000, ("元", "角"): 10,
}  # fmt: skip


def test_units_are_converted_right(training, held_out):
    for question, answer in of_kind(training + held_out, "units"):
        count, large = re.search(r"(\d+) ?([a-z]+|个?[\u4e00-\u9fff]+?)(?:\?| to |是|换)", question).groups()
        value, small = re.fullmatch(r"(\d+) ?(\D+)", answer).groups()
        assert int(value) == int(count) * FACTORS[large, small], question


def test_list_tasks_are_right(training, held_out):
    checked = Counter()
    counted = {"两": 2, "三": 3, "四": 4, "五": 5}
    for question, answer in of_kind(training + held_out, "strings"):
        words = re.split(", |、", re.sub(r"^.*?[:：]|[?？]$", "", question).strip())
        repeat = re.search(r"word (\w+) (\d) times|“(.+)”写(.)遍", question)
        if repeat:
            word, times = repeat[1] or repeat[3], int(repeat[2] or counted[repeat[4]])
            assert re.split(", |、", answer) == [word] * times
            continue
        for signs, expected in {
            ("last word", "最后一个"): words[-1],
            ("first word", "第一个"): words[0],
            ("second word", "第二个"): words[1],
            ("Reverse", "倒过来"): (", " if question.isascii() else "、").join(reversed(words)),
            ("hyphens", "横线"): "-".join(words),
            ("How many", "几个词"): str(len(words)),
        }.items():
            if any(sign in question for sign in signs):
                checked[signs] += 1
                assert answer == expected, question
    assert len(checked) == 6 and min(checked.values()) > 80


def test_number_sequences_and_comparisons_are_right(training, held_out):
    for question, answer in of_kind(training + held_out, "sequence"):
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        if numbers:
            assert int(answer) == 2 * numbers[-1] - numbers[-2] and len(numbers) == 4, question
    for question, answer in of_kind(training + held_out, "comparison"):
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        if numbers:
            choose = min if "smaller" in question or "小" in question else max
            assert answer == str(choose(numbers)), question


def test_lookups_are_right(training, held_out):
    for question, answer in of_kind(training + held_out, "lookup"):
        *_, asked = re.split(r"\n|\. |。", question)
        rows = re.findall(r"([A-Za-z\u4e00-\u9fff]+)(?: \| | )?(\d+)(?=[\n.,，。])", question)
        matches = {f"{value}{unit}" for name, value in rows if re.search(rf"\b{name}\b|^{name}(?:有|多)", asked)
                   for unit in ("", " yuan", "元")}  # fmt: skip
        matches |= {name for name, value in rows if re.search(rf"(?<!\d){value}(?!\d)", asked)}
        assert len(rows) in (3, 4) and answer in matches, question


def test_formats_are_kept(training, held_out):
    looks = {
        "JSON": r'\{"answer": "[^"]+"\}', "square brackets": r"\[.+\]", "Answer:": r"Answer: .+",
        "exclamation": r".+!", "quotation": r'".+"', "twice": r"(.+), \1", "capital letters": r"[A-Z]+",
        "方括号": r"\[.+\]", "答案：": r"答案：.+", "感叹号": r".+！", "引号": r"“.+”", "两遍": r"(.+)、\1",
        "两种语言": r"[\u4e00-\u9fff]+ / [a-z]+",
    }  # fmt: skip
    for row in training + held_out:
        if row["kind"] == "format":
            system, *_, answer = (message["content"] for message in row["conversations"])
            (look,) = [look for sign, look in looks.items() if sign in system]
            assert re.fullmatch(look, answer), (system, answer)


def test_follow_ups_need_the_turn_before(training, held_out):
    for row in training + held_out:
        if row["kind"] == "follow_up":
            first, reply, then, answer = (message["content"] for message in row["conversations"])
            more = re.search(r"Add (\d) to that|再加(\d)", then)
            if more:
                assert int(answer) == int(reply) + int(more[1] or more[2])
            elif reply in ("I will remember that.", "我记住了。"):
                assert answer in first


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "Paris"),
        ("日本的首都是哪里？", "东京"),
        ("What is the chemical symbol of gold?", "Au"),
        ("“苹果”用英语怎么说？", "apple"),
        ("Hi! Who are you?", "I am Mini, a small language model."),
        ("What comes next: a, b, c, d?", "e"),
        ("明天谁会赢比赛？", "我无法知道未来的事。"),
    ],
)
def test_literal_samples(training, held_out, question, answer):
    answers = {
        row["conversations"][-1]["content"]
        for row in training + held_out
        if row["kind"] != "format" and row["conversations"][-2]["content"] == question
    }
    assert answers == {answer}
