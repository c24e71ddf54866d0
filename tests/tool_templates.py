"""Chat templates that write calls as model families do, reduced to questions, answers and calls."""

from typing import Any

from chats import TOKENIZER

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.serving.tool_formats import Call

AROUND = ("{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
          "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}CALLS{% endif %}"
          "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
EACH = "{% for c in m.tool_calls %}{% set f = c.function %}CALL{% endfor %}"
JSON_CALL = '{"name": "{{ f.name }}", "KEY": {{ f.arguments | tojson }}}'


def each(call: str, start: str = "", between: str = "", end: str = "") -> str:
    if between:
        call += "{% if not loop.last %}" + f"{{{{ {between!r} }}}}" + "{% endif %}"
    return start + EACH.replace("CALL", call) + end


def json_call(key: str = "arguments") -> str:
    return JSON_CALL.replace("KEY", key)


FAMILIES = {
    "qwen": each("<tool_call>\n" + json_call() + "\n</tool_call>", between="\n"),
    "hermes": each("\n<tool_call>\n" + json_call() + "\n</tool_call>"),
    "smollm3": each("<tool_call>" + json_call() + "</tool_call>", between="\n"),
    "llama3": "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at most') }}{% endif %}"
              + each(json_call("parameters")),
    "mistral": each('{{ (f | tojson)[:-1] }}, "id": "{{ c.id }}"}', "[TOOL_CALLS] [", ", ", "]"),
    "mistral_names": each("[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}"),
    "phi4": each(json_call(), "<|tool_call|>[", ", ", "]<|/tool_call|>"),
    "granite": each('{"arguments": {{ f.arguments | tojson }}, "name": "{{ f.name }}"}', "<|tool_call|>[", ", ", "]"),
    "deepseek": each("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```"
                     "<｜tool▁call▁end｜>", "<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"),
    "openai": "{{ m.tool_calls | tojson }}",
    "qwen_coder": each("<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}"
                       "<parameter={{ k }}>\n{{ v if v is string else (v | tojson if v is iterable or v is number and "
                       "v is not boolean else v) }}\n</parameter>\n{% endfor %}</function>\n"
                       "</tool_call>", between="\n"),
    "glm": each("\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>\n"
                "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"),
}
ONE_CALL = ("llama3",)
"""Families whose answers have at most one call."""
TOKENS = ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|tool_call|>", "<|/tool_call|>", "<arg_key>", "</arg_key>",
          "<arg_value>", "</arg_value>",
          *(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))]


def with_tokens() -> Tokenizer:
    """Returns the bundled tokenizer with the control tokens of these families."""
    state = TOKENIZER.state
    first = TOKENIZER.vocab_size
    added = [{"id": first + index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for index, token in enumerate(TOKENS)]
    return Tokenizer({**state, "added_tokens": [*state["added_tokens"], *added]}, TOKENIZER.special)


FAMILY_TOKENIZER = with_tokens()


def family_template(name: str) -> ChatTemplate:
    return ChatTemplate(FAMILY_TOKENIZER, AROUND.replace("CALLS", FAMILIES[name]))


def message(content: str, calls: list[Call]) -> dict[str, Any]:
    """Returns the assistant's message with these calls."""
    made = [{"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in calls]
    return {"role": "assistant", "content": content, "tool_calls": made}
