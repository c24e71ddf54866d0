"""How a template writes calls is found by letting it write some."""

import pytest
from chats import BUNDLED, TOKENIZER
from tool_templates import AROUND, FAMILIES, ONE_CALL, each, family_template, message

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.errors import UserError
from minimind_sft.serving.tool_formats import Call, Pairs, Slot, ToolFormat

NAME, ARGUMENTS, ID = Slot.NAME, Slot.ARGUMENTS, Slot.ID
CALLS = [Call("weather", {"city": "罗马", "days": [1, {"k": None}]}), Call("now", {}, "call00002"),
         Call("f", {"a": "x\ny", "b": True}, "call00003")]
EXPECTED = {
    "qwen": ToolFormat("", ('<tool_call>\n{"name": "', NAME, '", "arguments": ', ARGUMENTS, "}\n</tool_call>"), "\n",
                       ""),
    "llama3": ToolFormat("", ('{"name": "', NAME, '", "parameters": ', ARGUMENTS, "}"), None, ""),
    "mistral": ToolFormat("[TOOL_CALLS] [", ('{"name": "', NAME, '", "arguments": ', ARGUMENTS, ', "id": "', ID, '"}'),
                          ", ", "]"),
    "granite": ToolFormat("<|tool_call|>[", ('{"arguments": ', ARGUMENTS, ', "name": "', NAME, '"}'), ", ", "]"),
    "deepseek": ToolFormat(
        "<｜tool▁calls▁begin｜>", ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", NAME, "\n```json\n", ARGUMENTS,
                                  "\n```<｜tool▁call▁end｜>"), "\n", "<｜tool▁calls▁end｜>"),
    "qwen_coder": ToolFormat(
        "", ("<tool_call>\n<function=", NAME, ">\n", ARGUMENTS, "</function>\n</tool_call>"), "\n", "",
        Pairs("<parameter=", ">\n", "\n</parameter>\n", "python")),
    "glm": ToolFormat("", ("<tool_call>", NAME, "\n", ARGUMENTS, "</tool_call>"), "", "",
                      Pairs("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_formats_written_out(name):
    assert ToolFormat.of(family_template(name)) == EXPECTED[name]


def test_the_bundled_template_writes_calls_as_qwens():
    assert ToolFormat.of(BUNDLED) == EXPECTED["qwen"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_format_writes_what_the_template_writes(name):
    template = family_template(name)
    calls = CALLS[:1] if name in ONE_CALL else CALLS
    question, tools = [{"role": "user", "content": "q"}], [{"type": "function", "function": {"name": "weather"}}]
    prompt = template.render(question, tools, True)
    answered = template.render([*question, message("", calls)], tools)
    assert answered.removeprefix(prompt).strip() == ToolFormat.of(template).write(calls).strip() + "<|im_end|>"


def template_of(calls: str) -> ChatTemplate:
    return ChatTemplate(TOKENIZER, AROUND.replace("CALLS", calls))


@pytest.mark.parametrize(("calls", "problem"), [
    ("", "the chat template does not write tool calls"),
    ("{{ raise_exception('no tools here') }}", "the chat template does not write tool calls: the conversation: the chat"
                                               " template refuses the conversation: no tools here"),
    (each("<call>{{ f.name }}</call>"), "the chat template does not write tool calls"),
    (each("{{ f.arguments | tojson }}"), "the chat template does not write tool calls"),
    (each("<call>{{ f.name }}={{ f.name }}{{ f.arguments | tojson }}</call>"), "UNREADABLE"),
    (each("<call>{{ f.name | upper }} {{ f.name }}{{ f.arguments }}</call>"), "UNREADABLE"),
    (each("{{ f.name }}{{ f.arguments | tojson }}"), "UNREADABLE"),
    (each("<call>{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ v }},{% endfor %})"), "UNREADABLE"),
    (each("<call>{{ loop.index }} {{ f.name }}{{ f.arguments | tojson }}</call>"), "UNREADABLE"),
])
def test_other_templates_are_refused_in_one_line(calls, problem):
    problem = problem.replace("UNREADABLE", "the chat template writes tool calls in a way that cannot be read back")
    with pytest.raises(UserError) as caught:
        ToolFormat.of(template_of(calls))
    assert str(caught.value) == problem


def test_a_template_without_tools_is_refused():
    with pytest.raises(UserError, match=r"^the chat template does not write tool calls: .*it has no place for tools$"):
        ToolFormat.of(make_template(TOKENIZER, "alpaca", "<|im_end|>"))


@pytest.mark.parametrize("described", [
    'A call is\n<tool_call>\n{"name": <function-name>, "arguments": <object>}\n</tool_call>',
    'A call is\n<tool_call>\n{\\"name\\": <function-name>, \\"arguments\\": <object>}\n</tool_call>',
    "A call is JSON with the function's name and arguments between <tool_call></tool_call>",
])
def test_a_template_may_describe_the_format_without_ever_writing_a_call(described):
    source = AROUND.replace("{{ tools | tojson }}", "{{ tools | tojson }}" + described).replace("CALLS", "")
    assert ToolFormat.of(ChatTemplate(TOKENIZER, source)) == EXPECTED["qwen"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [
    ("qwen3", ('<tool_call>\n{"name": "', True, False)), ("llama3_1", ('{"name": "', True, False)),
    ("qwen3_6", ("<tool_call>\n<function=", False, True)), ("glm4moe", ("\n<tool_call>", False, True)),
])
def test_formats_of_trls_templates(name, expected):
    pytest.importorskip("trl", reason="trl is not installed")
    from templates import NamedTemplate, tokenizer_for, trl_templates
    if name not in trl_templates():
        pytest.skip(f"this version of TRL has no template {name}")
    source = trl_templates()[name]
    found = ToolFormat.of(NamedTemplate(name, source, tokenizer_for(source)).load())
    assert (found.call[0], found.call_object is not None, found.pairs is not None) == expected
