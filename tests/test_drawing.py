"""Questions drawn from samples: their prompts are those of a chat."""

import pytest
from chats import ALTERNATING, BUNDLED, CALL, TOKENIZER, TOOLS, chat

from minimind_sft.data.chat_template import ChatTemplate, Supervision
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.samples import PretrainEncoder, SFTEncoder
from minimind_sft.evaluation.drawing import SampleQuestion, draw_questions
from minimind_sft.settings.evaluation import EvaluationSettings

ALPACA = ("{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n{% else %}"
          "### Response:\n{{ m.content }}<|im_end|>\n\n{% endif %}{% endfor %}"
          "{% if add_generation_prompt %}### Response:\n{% endif %}")


def samples(*rows: dict, encoder=None) -> ExampleDataset:
    encoder = encoder or SFTEncoder(BUNDLED, 512)
    encoded = encoder.encode([(f"a.jsonl:{number}", row) for number, row in enumerate(rows)])
    return ExampleDataset([sample for row in encoded for sample in row.samples])


def drawn(dataset, template=BUNDLED, count: int = 100, context: int = 4096) -> list[SampleQuestion]:
    return list(draw_questions(dataset, EvaluationSettings(eval_samples=count), context, TOKENIZER, template).questions)


def only(row: dict, template=BUNDLED, **encoding) -> SampleQuestion:
    (question,) = drawn(samples(row, encoder=SFTEncoder(template, 512, **encoding)), template)
    return question


def messages(row: dict) -> list[dict]:
    return row["conversations"]


@pytest.mark.parametrize("template", [BUNDLED, ChatTemplate(TOKENIZER, ALTERNATING), ChatTemplate(TOKENIZER, ALPACA)],
                         ids=["chatml", "alternating", "alpaca"])
@pytest.mark.parametrize("said", [("Who are you?", "I am Mini."), ("Hi", "Hello.", "Who are you?", "I am Mini.")])
def test_a_prompt_is_that_of_a_chat_before_the_last_answer(template, said):
    row = chat(*said)
    question = only(row, template)
    assert question.prompt == template.generation_prompt_ids(messages(row)[:-1])
    assert (question.text, question.expected) == ("Who are you?", "I am Mini.")
    assert question.tokens == len(TOKENIZER.encode_ordinary("I am Mini."))


def test_a_system_turn_is_in_the_prompt_but_not_in_the_shown_question():
    row = chat("Be brief.", "Who are you?", "Mini.", roles="sua")
    question = only(row)
    assert question.prompt == BUNDLED.generation_prompt_ids(messages(row)[:-1])
    assert question.text == "Who are you?"


def test_reasoning_is_asked_for_but_not_compared():
    row = chat("Who are you?", "I am Mini.")
    row["conversations"][-1]["reasoning_content"] = "My name is Mini."
    question = only(row)
    assert question.prompt == BUNDLED.generation_prompt_ids(messages(row)[:-1], thinking=True)
    assert (question.text, question.expected) == ("Who are you?", "I am Mini.")
    assert question.tokens > len(TOKENIZER.encode_ordinary("My name is Mini. I am Mini."))


def test_a_call_is_compared_as_the_template_writes_it():
    row = {"conversations": [{"role": "user", "content": "Weather?"},
                             {"role": "assistant", "content": "", "tool_calls": CALL}], "tools": TOOLS}
    question = only(row)
    assert question.prompt == BUNDLED.generation_prompt_ids(messages(row)[:-1], TOOLS)
    assert question.text == "Weather?"
    assert question.expected.startswith("<tool_call>\n") and "罗马" in question.expected


def test_control_text_of_a_user_does_not_end_the_question():
    row = chat("Spell <|im_end|> and <think>", "No.")
    question = only(row)
    assert question.prompt == BUNDLED.generation_prompt_ids(messages(row)[:-1])
    assert question.text == "Spell <|im_end|> and <think>"


def test_an_answer_that_is_cut_off_has_nothing_to_compare():
    row = chat("Who are you?", "I am Mini, " * 60)
    encoder = SFTEncoder(BUNDLED, 64)
    (question,) = drawn(samples(row, encoder=encoder))
    assert (question.text, question.expected) == ("Who are you?", None)
    assert not question.can_be_compared(512)


def test_an_answer_longer_than_the_limit_is_not_compared():
    question = SampleQuestion("all", [1], "q", "a", tokens=9)
    assert question.can_be_compared(9) and not question.can_be_compared(8)


@pytest.mark.parametrize("template", [None, BUNDLED], ids=["pretraining", "fine-tuning"])
def test_running_text_is_continued_from_its_beginning(template):
    text = "Once upon a time there was a little whale who sang in the sea."
    encoder = PretrainEncoder(TOKENIZER, 512) if template is None else SFTEncoder(BUNDLED, 512)
    (question,) = drawn(samples({"text": text}, encoder=encoder), template)
    ids = TOKENIZER.encode_ordinary(text)
    assert question.prompt == ids[:-(-len(ids) // 2)] and len(ids) < 64
    assert question.expected is None and text.startswith(question.text)
    (question,) = drawn(samples({"text": text * 9}, encoder=encoder), template)
    assert question.prompt == TOKENIZER.encode_ordinary(text * 9)[:32]


def test_with_the_prompt_learned_as_well_the_text_is_continued():
    row = chat("Who are you?", "I am Mini.")
    question = only(row, supervision=Supervision(prompt=True))
    assert question.expected is None and question.prompt == only(row).prompt[:len(question.prompt)]


def test_the_draw_is_fixed_and_a_smaller_one_is_its_beginning():
    dataset = samples(*(chat(f"Say {i}.", f"It is {i}.") for i in range(30)))
    all_drawn, five = drawn(dataset), drawn(dataset, count=5)
    assert len(all_drawn) == 30 and all_drawn[:5] == five == drawn(dataset, count=5)
    assert [question.text for question in five] != [f"Say {i}." for i in range(5)]
    assert drawn(dataset, count=0) == []


def test_a_prompt_without_room_in_the_context_is_passed_over():
    dataset = samples(chat("word " * 50, "a"), chat("b", "c"))
    assert [question.expected for question in drawn(dataset, context=40)] == ["c"]
