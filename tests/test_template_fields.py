"""Which fields a chat template renders, and what happens to rows that need others."""

import json
from dataclasses import replace

import pytest
from chats import CALL, TOKENIZER, TOOLS, conversation, supervised_texts
from templates import tokenizer_for, trl_templates

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.template_fields import RenderedFields, Shape
from minimind_sft.data.template_marks import MarkedTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError

SIMPLE = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
NO_SYSTEM = SIMPLE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
NO_RESULTS = SIMPLE.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
CALLS_ONLY = SIMPLE.replace("+ m.content +", "+ ((m.tool_calls|tojson) if m.tool_calls else m.content) +")
FIRST_CALL = SIMPLE.replace("+ m.content +", "+ ((m.tool_calls[0]|tojson) if m.tool_calls else m.content) +")
WITH_REASONING = SIMPLE.replace("+ m.content +", "+ (m.reasoning_content or '') + m.content +")
CALLS_AND_NO_RESULTS = NO_RESULTS.replace("+ m.content +", "+ (m.tool_calls|string) + m.content +")
RESULTS_IN_JSON = ("{% for m in messages %}{% if m.role == 'tool' and '{' not in m.content %}"
                   "{{ raise_exception('expected JSON') }}{% endif %}{% endfor %}" + CALLS_AND_NO_RESULTS)

ASKED, SAID = ("user", "time?"), ("assistant", "noon")
CALLED = ("assistant", "", {"tool_calls": CALL})


def encode(source: str, *turns: tuple, tools: list | None = None) -> list[str]:
    return supervised_texts(ChatTemplate(TOKENIZER, source), conversation(*turns, tools=tools))


@pytest.mark.parametrize("source, turns, tools, field, label", [
    (SIMPLE, [ASKED, SAID], TOOLS, "tools", "functions on offer"),
    (SIMPLE, [ASKED, CALLED], None, "conversations[1].tool_calls", "tool calls"),
    (SIMPLE, [ASKED, CALLED, ("tool", "12"), SAID], None, "conversations[1].tool_calls", "tool calls"),
    (SIMPLE, [ASKED, SAID, ASKED, ("assistant", "I look.", {"tool_calls": CALL})], None,
     "conversations[3].tool_calls", "tool calls"),
    (SIMPLE, [ASKED, ("assistant", "noon", {"reasoning_content": "the sun"})], None,
     "conversations[1].reasoning_content", "reasoning"),
    (SIMPLE, [ASKED, ("assistant", "", {"reasoning_content": "the sun"})], None,
     "conversations[1].reasoning_content", "reasoning"),
    (NO_SYSTEM, [("system", "Be brief."), ASKED, SAID], None, "conversations[0].content", "a system turn"),
    (CALLS_AND_NO_RESULTS, [ASKED, CALLED, ("tool", "12"), SAID], None, "conversations[2].content", "a tool's result"),
    (CALLS_ONLY, [ASKED, ("assistant", "I look.", {"tool_calls": CALL})], None, "conversations[1].content",
     "the words of this answer beside its calls"),
    (FIRST_CALL, [ASKED, ("assistant", "", {"tool_calls": CALL * 2})], None, "conversations[1].tool_calls",
     "tool calls"),
    (RESULTS_IN_JSON, [ASKED, CALLED, ("tool", "{}"), SAID], None, "conversations[2].content", "a tool's result"),
])
def test_a_row_with_a_field_that_the_template_ignores_is_refused(source, turns, tools, field, label):
    with pytest.raises(UserError) as error:
        encode(source, *turns, tools=tools)
    assert str(error.value).startswith(f"a.jsonl:3: {field}: the chat template does not render {label}, so ")


def test_rows_with_only_rendered_fields_are_encoded():
    assert encode(SIMPLE, ("system", "s"), ASKED, SAID, ASKED, SAID) == ["noon<|im_end|>"] * 2
    assert encode(NO_SYSTEM, ASKED, SAID) == ["noon<|im_end|>"]
    assert encode(NO_SYSTEM, ("system", " "), ASKED, SAID) == ["noon<|im_end|>"]  # nothing is lost
    assert encode(CALLS_ONLY, ASKED, ("assistant", "\n", {"tool_calls": CALL}))[0].startswith('[{"type": "function"')
    assert encode(WITH_REASONING, ASKED, ("assistant", "b", {"reasoning_content": "a"})) == ["ab<|im_end|>"]


def test_only_earlier_reasoning_may_be_left_out():
    """Qwen3's template renders reasoning only in the last turn."""
    source = SIMPLE.replace("+ m.content +", "+ ((m.reasoning_content or '') if loop.last else '') + m.content +")
    turns = [ASKED, ("assistant", "b", {"reasoning_content": "a"})]
    assert encode(source, *turns, *turns) == ["ab<|im_end|>"] * 2


def test_a_refusal_by_the_template_itself_is_reported():
    source = ("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + NO_SYSTEM)
    with pytest.raises(UserError, match=r"^a\.jsonl:3: the chat template refuses the conversation: no system turn$"):
        encode(source, ("system", "s"), ASKED, SAID)


def test_a_chat_with_fields_that_the_template_ignores_is_refused():
    template = ChatTemplate(TOKENIZER, SIMPLE)
    with pytest.raises(UserError, match=r"^the conversation: tools: the chat template does not render functions"):
        template.generation_prompt_ids([{"role": "user", "content": "hi"}], TOOLS)
    with pytest.raises(UserError, match=r"^the conversation: conversations\[0\]\.content: .* a system turn"):
        ChatTemplate(TOKENIZER, NO_SYSTEM).generation_prompt_ids(
            [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}])
    # A chat may lose the reasoning of earlier answers.
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    assert template.generation_prompt_ids([*history, {"role": "user", "content": "d"}])


@pytest.mark.parametrize("row, name", [
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning": "r"}]},
     "messages[1].reasoning_content"),
    ({"conversations": [{"from": "human", "value": "x"},
                        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
     "conversations[1].tool_calls"),
    ({"system": "s", "instruction": "x", "output": "y"}, "system"),
])
def test_an_error_uses_the_names_of_the_row(row, name):
    with pytest.raises(UserError, match=r"does not render") as error:
        ChatTemplate(TOKENIZER, NO_SYSTEM).encode(parse_conversation(row, "b.jsonl:1"))
    assert str(error.value).startswith(f"b.jsonl:1: {name}: ")


def test_names_do_not_affect_the_equality_of_conversations():
    chat = conversation(ASKED, SAID, ASKED, SAID)
    assert chat.names == tuple(f"conversations[{i}]" for i in range(4))
    assert replace(chat, names=()) == chat  # names are not part of the content


def test_each_form_is_probed_once():
    asked = []

    def render(messages, tools, ask, thinking):
        asked.append(len(messages))
        return " ".join(str(message) for message in messages)

    fields = RenderedFields(render)
    two = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for messages in (two, two, [{**two[0], "content": "other"}, two[1]], [*two, *two], [*two, *two, *two]):
        assert fields.first_lost(messages, None) is None
    assert asked == [2, 4]


# What TRL's templates do not render, determined by reading their sources.

CONTENT = {"user": Shape("user", True, 0, False), "answer": Shape("assistant", True, 0, False)}
EXPECTED = {
    "llama3": {"tools", "calls", "reasoning"},
    "phi3": {"tools", "calls", "reasoning", "result"},
    "qwen2_5_vl": {"tools", "calls", "reasoning"},
    "idefics3": {"tools", "calls", "reasoning"},
    "lfm2": {"calls", "reasoning"},
    "llama3_1": {"words beside a call", "reasoning"},
    "qwen2_5": {"reasoning"},
    "qwen3": set(),
    "gptoss": {"second call"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_unrendered_fields_of_templates_of_trl(name):
    pytest.importorskip("trl")
    source = trl_templates()[name]
    fields = RenderedFields(MarkedTemplate(tokenizer_for(source), source).probe_text)
    user, answer = CONTENT["user"], CONTENT["answer"]
    call, result = Shape("assistant", False, 1, False), Shape("tool", True, 0, False)
    lost = set()
    for what, shapes, tools, field in (
            ("tools", [user, answer], True, ("", "tools")),
            ("calls", [user, call], False, ("assistant", "tool_calls")),
            ("second call", [user, call._replace(calls=2)], False, ("assistant", "tool_calls")),
            ("words beside a call", [user, call._replace(content=True)], False, ("assistant", "content")),
            ("result", [call, result, answer], False, ("tool", "content")),
            ("reasoning", [user, answer._replace(reasoning=True)], False, ("assistant", "reasoning_content"))):
        if field in fields.probe(shapes, tools):
            lost.add(what)
    if "calls" in lost:
        lost.discard("second call")
    assert lost == EXPECTED[name]


def test_chatml_is_suggested_only_if_the_tokenizer_has_its_tokens():
    state, *others = TOKENIZER.__reduce__()[1]
    renamed = json.loads(json.dumps(state).replace("<|im_", "<|turn_"))
    others = json.loads(json.dumps(others).replace("<|im_", "<|turn_"))
    other = Tokenizer(renamed, *others)
    for tokenizer, source, ending in ((TOKENIZER, SIMPLE, "one that does, such as chatml"),
                                      (other, SIMPLE.replace("<|im_", "<|turn_"), "one that does")):
        with pytest.raises(UserError) as error:
            ChatTemplate(tokenizer, source).encode(conversation(ASKED, CALLED))
        assert str(error.value).endswith(f"--chat_template names {ending}")
