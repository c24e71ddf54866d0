"""Measures of a row, for filtering."""

import pytest
from chats import BUNDLED

from minimind_sft.data.conversation import parse_row
from minimind_sft.data.filters import language_share, longest_sequence, not_seen_before, row_text, shortest_answer
from minimind_sft.data.samples import SFTEncoder

CALLS = {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]},
                      {"role": "tool", "content": "r"}, {"role": "assistant", "content": "long answer"}]}


def said(question: str, answer: str) -> dict:
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_filters_measure_a_row():
    plain, calls, text = (parse_row(row, "a:1") for row in (said("q", " ab "), CALLS, {"text": "一"}))
    assert [shortest_answer(row) for row in (plain, calls, text)] == [2, 11, None]
    assert shortest_answer(parse_row({"instruction": "q", "output": "abc", "history": [["p", "ab"]]}, "a:1")) == 2
    shown = {"role": "assistant", "content": "", "train": False}
    flagged = parse_row({"messages": [*said("q", "abc")["conversations"], shown]}, "a:1")
    assert shortest_answer(flagged) == 3
    assert [row_text(row) for row in (plain, calls, text)] == ["q\n ab ", "q\nr\nlong answer", "一"]
    rows = SFTEncoder(BUNDLED, 100)
    assert longest_sequence(plain, rows) == len(BUNDLED.encode(plain)[0].input_ids)
    assert longest_sequence("", rows) == 1
    is_new = not_seen_before()
    assert [is_new(row) for row in (plain, calls, plain, text, "一")] == [True, True, False, True, False]


@pytest.mark.parametrize("text, language, share", [
    ("中文 abcd 12", "zh", 1 / 3), ("中文", "ja", 1.0), ("ひ中", "ja", 1.0), ("ひ中", "zh", 0.5), ("été 1", "en", 1.0),
    ("да ok", "ru", 0.5), ("한글", "ko", 1.0), ("123 !?", "zh", 1.0),
])
def test_the_share_of_a_language(text, language, share):
    assert language_share(text, language) == pytest.approx(share)
