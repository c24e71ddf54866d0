"""Multiple choice by likelihood: prompts, scores, the report."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from chats import TOKENIZER, tiny_model

from minimind_sft.errors import UserError
from minimind_sft.evaluation import choices
from minimind_sft.evaluation.choice_files import ChoiceQuestion
from minimind_sft.evaluation.choices import ChoicePrompter, ChosenOption, accuracies, choice_lines, score_choices

PRIME = ChoiceQuestion("m.csv:1", "mmlu", "number_theory", " Which is prime? ", ("four", "five", "six", "nine"), 1)
SMALL = ChoiceQuestion("m.csv:2", "mmlu", "number_theory", "Which is small?", ("two", "ten"), 0)
CAPITAL = ChoiceQuestion("c.csv:1", "ceval", "high_school_geography", "首都是____。", ("北京", "上海", "广州", "深圳"),
                         0)
SUM = ChoiceQuestion("c.csv:1", "cmmlu", "elementary_mathematics", "一加一等于", ("一", "二", "三", "四"), 1)


def prompter(scored: str = "letters", few_shot: int = 0, examples=(), context: int = 4096) -> ChoicePrompter:
    return ChoicePrompter(TOKENIZER, context, scored, few_shot, examples)


def texts(made: ChoicePrompter, question: ChoiceQuestion) -> tuple[str, list[str]]:
    """Returns the prompt and what may follow it, as text."""
    continuations = made.prompt(question).continuations
    (context,) = {TOKENIZER.decode(list(one.context)) for one in continuations}
    return context, [TOKENIZER.decode(one.ids) for one in continuations]


def test_letters_are_asked_for_as_in_mmlu():
    assert texts(prompter(), PRIME) == (
        "The following are multiple choice questions (with answers) about number theory.\n\n"
        "Which is prime?\nA. four\nB. five\nC. six\nD. nine\nAnswer:", [" A", " B", " C", " D"])


def test_letters_are_asked_for_as_in_c_eval_and_cmmlu():
    assert texts(prompter(), CAPITAL)[0] == (
        "以下是中国关于高中地理的单项选择题，请选出其中的正确答案。\n\n"
        "首都是____。\nA. 北京\nB. 上海\nC. 广州\nD. 深圳\n答案：")
    assert texts(prompter(), SUM)[0] == (
        "以下是关于初等数学的单项选择题，请直接给出正确答案的选项。\n\n一加一等于\nA. 一\nB. 二\nC. 三\nD. 四\n答案：")
    assert texts(prompter(), replace(SUM, subject="my_own"))[0].startswith("以下是关于my own的单项选择题")


def test_texts_are_scored_without_showing_them():
    assert texts(prompter("texts"), PRIME) == (
        "The following are questions (with answers) about number theory.\n\nQuestion: Which is prime?\nAnswer:",
        [" four", " five", " six", " nine"])
    assert texts(prompter("texts"), CAPITAL) == (
        "以下是中国关于高中地理的问题和答案。\n\n首都是____。\n答案：", ["北京", "上海", "广州", "深圳"])


def test_examples_are_the_first_of_the_subject_and_never_the_question():
    other = replace(SMALL, subject="anatomy")
    made = prompter(few_shot=1, examples=[other, PRIME, SMALL])
    example = "Which is small?\nA. two\nB. ten\nAnswer: A\n\n"
    assert texts(made, PRIME)[0] == (
        "The following are multiple choice questions (with answers) about number theory.\n\n" + example
        + "Which is prime?\nA. four\nB. five\nC. six\nD. nine\nAnswer:")
    assert "Which is prime?\nA. four\nB. five\nC. six\nD. nine\nAnswer: B\n\n" in texts(made, SMALL)[0]
    with pytest.raises(UserError, match=r"--few_shot is 2, but --few_shot_path has 1 example of number_theory, the "
                                        r"subject of m\.csv:1"):
        prompter(few_shot=2, examples=[PRIME, SMALL]).prompt(PRIME)


def test_examples_leave_first_what_does_not_fit():
    examples = [replace(SMALL, question=f"Which one is small, number {n}?") for n in range(4)]
    whole = prompter(few_shot=4, examples=examples).prompt(PRIME)
    longest = len(whole.continuations[0].context)
    assert (whole.examples, whole.problem) == (4, "")
    short = prompter(few_shot=4, examples=examples, context=longest - 1).prompt(PRIME)
    assert short.examples == 3
    text = TOKENIZER.decode(list(short.continuations[0].context))
    assert "number 2?" in text and "number 3?" not in text
    none = prompter(context=10).prompt(PRIME)
    assert none.continuations == () and none.problem.startswith("m.csv:1: the question has ")


def test_control_tokens_in_a_question_are_text():
    made = prompter().prompt(replace(PRIME, question="<|im_end|>?"))
    assert TOKENIZER.token_to_id("<|im_end|>") not in made.continuations[0].context


@torch.no_grad()
@pytest.mark.parametrize("scored", ["letters", "texts"])
def test_scores_are_log_likelihoods(scored, monkeypatch):
    monkeypatch.setattr(choices, "QUESTIONS_AT_ONCE", 2)
    model, made = tiny_model().double(), prompter(scored)
    prompts = [made.prompt(question) for question in (PRIME, SMALL, CAPITAL)]
    batches = list(score_choices(model, made, prompts))
    assert list(map(len, batches)) == [2, 1]
    for result, prompt in zip(chain(*batches), prompts, strict=True):
        assert result.question is prompt.question
        assert result.lengths == tuple(1 if scored == "letters" else len(one) for one in result.question.options)
        for value, (context, ids) in zip(result.log_likelihoods, prompt.continuations, strict=True):
            logits = model.document_logits(torch.tensor([*context, *ids[:-1]]), (0, len(context) + len(ids) - 1))
            expected = -torch.nn.functional.cross_entropy(logits[-len(ids):], torch.tensor(ids), reduction="sum")
            assert value == pytest.approx(expected.item(), abs=1e-9)


def chosen(question: ChoiceQuestion, *log_likelihoods: float, lengths=(4, 4, 3, 4)) -> ChosenOption:
    return ChosenOption(question, log_likelihoods, lengths[:len(question.options)])


def test_the_most_likely_option_is_the_answer_the_first_of_equals():
    one = chosen(PRIME, -4.0, -3.0, -2.5, -3.0)
    assert (one.chosen, one.is_right) == (2, False)
    assert (one.chosen_norm, one.is_right_norm) == (1, True)  # -1, -0.75, -0.83, -0.75
    assert chosen(PRIME, -3.0, -3.0, -9.0, -3.0).chosen == 0


def test_a_result_is_a_line_of_the_answers_file():
    assert chosen(PRIME, -4.0, -3.0, -2.5, -3.0).as_json() == {
        "kind": "number_theory", "place": "m.csv:1", "question": " Which is prime? ",
        "options": ["four", "five", "six", "nine"], "expected": "B", "answer": "C", "exact": False,
        "answer_norm": "B", "exact_norm": True, "log_likelihoods": [-4.0, -3.0, -2.5, -3.0]}


RESULTS = [chosen(PRIME, -4.0, -3.0, -2.5, -3.0), chosen(SMALL, -1.0, -2.0), chosen(CAPITAL, -1.0, -2.0, -2.0, -2.0),
           chosen(replace(CAPITAL, subject="法律"), -3.0, -2.0, -2.0, -2.0)]


def test_accuracies_of_all_and_of_subjects():
    found = accuracies(RESULTS)
    by_subject = found.pop("by_subject")
    assert found == pytest.approx({"acc": 0.5, "acc_norm": 0.75, "stderr": (0.25 / 3) ** 0.5, "guessing": 1.25 / 4,
                                   "questions": 4, "acc_of_subjects": 0.5})
    assert list(by_subject) == ["high_school_geography", "number_theory", "法律"]
    assert by_subject["number_theory"] == {"acc": 0.5, "acc_norm": 1.0, "stderr": 0.5, "guessing": 0.375,
                                           "questions": 2}


def test_the_report():
    prompts = [prompter().prompt(one.question) for one in RESULTS]
    prompts += [prompter(context=10).prompt(PRIME)]
    assert list(choice_lines(RESULTS, prompts, few_shot=1)) == [
        "subject                questions     acc  acc_norm",
        "high_school_geography          1  100.0%    100.0%",
        "number_theory                  2   50.0%    100.0%",
        "法律                           1    0.0%      0.0%",
        "not asked: 1 question",
        f"  {prompts[-1].problem}",
        "asked with fewer than 1 example, as more do not fit into the context: 4 questions",
        "acc: 50.0% ± 28.9%, acc_norm: 75.0%, guessing: 31.2% (4 questions, 3 subjects, mean of subjects 50.0%)"]
    with pytest.raises(UserError, match=r"--choices: no question can be asked, starting with m\.csv:1: the"):
        list(choice_lines([], prompts[-1:], few_shot=0))


def test_almost_equal_options_are_scored_alone(monkeypatch):
    """So the choice does not depend on which questions are together, as after an interruption."""
    close, clear = chosen(PRIME, -4.0, -3.0, -3.0005, -9.0), chosen(PRIME, -4.0, -3.0, -3.0015, -9.0)
    assert close.is_close(1e-3) and not chosen(PRIME, -9.0, -3.0, -8.0, -9.0).is_close(1e-3)
    assert not clear.is_close(1e-3)
    assert chosen(PRIME, -4.0, -4.0004, -9.0, -9.0, lengths=(4, 1, 1, 1)).is_close(1e-3)
    model, made = tiny_model(), prompter()
    prompts = [made.prompt(question) for question in (PRIME, SMALL, CAPITAL)]
    monkeypatch.setattr(choices, "CLOSE", {torch.float32: 99.0})
    together = list(chain(*score_choices(model, made, prompts)))
    alone = [next(score_choices(model, made, [prompt]))[0] for prompt in prompts]
    assert together == alone
