"""Scoring: the expected answer, rows that cannot be compared, the report and the results file."""

from pathlib import Path

import pytest
from chats import ALTERNATING, BUNDLED, CALL, TOKENIZER, TOOLS, WITHOUT_SYSTEM_OR_TOOLS, tiny_model

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import parse_conversation
from minimind_sft.errors import UserError
from minimind_sft.evaluation import answering
from minimind_sft.evaluation.answering import Scored, check_output, output_rows, report, score, shortened
from minimind_sft.evaluation.questions import Question, Row, make_question, read_scored_rows
from minimind_sft.inference.generate import SamplingSettings

USER = {"role": "user", "content": "Who are you?"}
ANSWER = {"role": "assistant", "content": "I am Mini."}


def question(*messages: dict, kind: str = "all", template: ChatTemplate = BUNDLED, thinking: bool = False,
             context: int = 4096, **row) -> Question:
    conversation = parse_conversation({"messages": list(messages), **row}, "q.jsonl:7")
    return make_question(Row(kind, conversation), template, thinking, context)


def scored(answer: str | None, *messages: dict, **more) -> Scored:
    return Scored(question(*(messages or (USER, ANSWER)), **more), answer)


@pytest.mark.parametrize("following", [
    [], [{"role": "user", "content": "bye"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
])
def test_the_last_assistant_turn_is_the_expected_answer(following):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    asked = question(*earlier, USER, ANSWER, *following)
    assert (asked.expected, asked.problem) == ("I am Mini.", "")
    assert asked.messages == (*earlier, USER)
    assert asked.prompt == BUNDLED.generation_prompt_ids([*earlier, USER])


def test_rows_that_end_with_a_user_turn_expect_the_answer_before_it(shared):
    rows = read_scored_rows([shared / "cases/rows/score_last_user.jsonl"])
    questions = [make_question(row, BUNDLED, False, 4096) for row in rows]
    assert [asked.expected for asked in questions] == ["I am Mini, a small language model."] * 2
    assert questions[0].prompt == questions[1].prompt


@pytest.mark.parametrize("turn", [
    {"reasoning_content": "My name is Mini."},
    {"content": "<think>\nMy name is Mini.\n</think>\n\nI am Mini."},
    {"train": False},
])
def test_reasoning_is_not_part_of_the_expected_answer(turn):
    asked = question(USER, {**ANSWER, **turn})
    assert (asked.expected, asked.problem) == ("I am Mini.", "")
    assert asked.prompt == BUNDLED.generation_prompt_ids([USER], thinking=False)
    assert question(USER, ANSWER, thinking=True).prompt == BUNDLED.generation_prompt_ids([USER], thinking=True)


def test_a_call_is_compared_as_the_template_writes_it():
    asked = question(USER, {"role": "assistant", "content": "", "tool_calls": CALL}, tools=TOOLS)
    assert asked.expected == '<tool_call>\n{"name": "weather", "arguments": {"city": "罗马"}}\n</tool_call>'
    assert asked.has_call
    lines = list(report([Scored(asked, asked.expected)], 80))
    assert "1 of them expect a tool call, compared as the chat template writes it" in lines
    assert lines[-1] == "exact match: 100.0% (1 question)"


def test_a_row_that_cannot_be_compared_says_why():
    only_reasoning = question(USER, {"role": "assistant", "content": "", "reasoning_content": "Hm."})
    assert only_reasoning.problem == "q.jsonl:7: the last assistant turn has no words to compare with"
    no_system = question({"role": "system", "content": "Be brief."}, USER, ANSWER,
                         template=ChatTemplate(TOKENIZER, WITHOUT_SYSTEM_OR_TOOLS))
    assert no_system.problem.startswith("q.jsonl:7: messages[0].content: the chat template does not render a system")
    refused = question({"role": "system", "content": "Be brief."}, USER, ANSWER,
                       template=ChatTemplate(TOKENIZER, ALTERNATING))
    assert refused.problem == "q.jsonl:7: the chat template refuses the conversation: roles must alternate"
    too_long = question({"role": "user", "content": "word " * 50}, ANSWER, context=40)
    assert too_long.problem.startswith("q.jsonl:7: the prompt has ")
    assert too_long.problem.endswith(" tokens, the model's context is 40")


def test_questions_with_a_problem_get_no_answer(monkeypatch):
    said = iter(["<think>\nHm.\n</think>\n\nI am Mini.", " I am Max.\n"])
    monkeypatch.setattr(answering, "generate_greedily",
                        lambda model, prompts, settings, stop_ids: [TOKENIZER.encode(next(said)) for _ in prompts])
    questions = [question(USER, ANSWER), question(USER, {**ANSWER, "content": "", "reasoning_content": "Hm."}),
                 question(USER, ANSWER)]
    results = score(tiny_model(), BUNDLED, questions, SamplingSettings(8), batch_size=1)
    assert [(result.answer, result.exact) for result in results] == [("I am Mini.", True), (None, None),
                                                                     ("I am Max.", False)]


def test_the_report_has_a_table_problems_examples_and_the_total_last():
    problem = {"role": "assistant", "content": "", "reasoning_content": "Hm."}
    results = [scored("I am Mini."), scored("I am Max.", kind="names"), *[scored(None, USER, problem)] * 7,
               *[scored("I am\nMoritz, " + "and " * 30)] * 3]
    assert list(report(results, 40)) == [
        "kind   questions  exact match",
        "all            4        25.0%",
        "names          1         0.0%",
        "not compared: 7 rows",
        *["  q.jsonl:7: the last assistant turn has no words to compare with"] * 5,
        "  ... and 2 more (--score_out names all)",
        "wrong answers, 3 of 4:",
        "  q.jsonl:7",
        "    question  Who are you?",
        "    expected  I am Mini.",
        "    answer    I am Max.",
        *["  q.jsonl:7",
          "    question  Who are you?",
          "    expected  I am Mini.",
          "    answer    I am\\nMoritz, and and a..."] * 2,
        "exact match: 20.0% (5 questions)",
    ]


def test_without_comparable_rows_the_report_is_an_error():
    problem = {"role": "assistant", "content": "", "reasoning_content": "Hm."}
    with pytest.raises(UserError, match=r"--score: no row can be compared, starting with q\.jsonl:7: the last"):
        list(report([scored(None, USER, problem)], 80))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices")
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full", "/dev/null", "."])
def test_what_is_no_file_gets_no_results_and_is_not_read(name):
    with pytest.raises(UserError, match=f"--score_out {name}: the file exists and holds something other"):
        check_output(Path(name), [])


def test_results_are_written_row_by_row():
    problem = {"role": "assistant", "content": "", "reasoning_content": "Hm."}
    assert list(output_rows([scored("I am Max.", kind="names", tools=TOOLS), scored(None, USER, problem)])) == [
        {"kind": "names", "place": "q.jsonl:7", "messages": [USER], "tools": TOOLS, "expected": "I am Mini.",
         "answer": "I am Max.", "exact": False},
        {"kind": "all", "place": "q.jsonl:7", "messages": [USER], "expected": None, "answer": None, "exact": None,
         "problem": "q.jsonl:7: the last assistant turn has no words to compare with"}]


@pytest.mark.parametrize("text, columns, shown", [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc..."),
                                                  ("你好吗你", 8, "你好吗你"), ("你好吗你好", 8, "你好..."),
                                                  ("a\nb\x1b[m", 20, "a\\nb\\u001b[m")])
def test_shortened_fits_the_columns(text, columns, shown):
    assert shortened(text, columns) == shown
