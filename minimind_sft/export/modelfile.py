"""Writes a Modelfile, with which Ollama runs a GGUF file.

Ollama does not run Jinja. Its own templates (Go's text/template) can say what most chat templates do: write something
before and after each message, depending on its role. What that is, is found with a probe conversation, and checked.
"""

import json
from dataclasses import dataclass, replace

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError
from minimind_sft.export.gguf_tokens import adds_bos
from minimind_sft.export.model import Export
from minimind_sft.settings.chat import SamplingSettings

SYSTEM, USER, ANSWER, QUESTION = PROBE = ("\ue000system\ue000", "\ue000user\ue000", "\ue000answer\ue000",
                                          "\ue000question\ue000")
CHECKED = (
    ("user",), ("user", "assistant", "user"), ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
"""The roles of the conversations on which a derived template must agree with the chat template."""
GO_SYNTAX = ("{{", "}}", '"""')


@dataclass(frozen=True)
class Frames:
    """A chat template as text around messages.

    start: before the first message.
    around: by role, what comes before and after a message.
    prompt: the generation prompt, without thinking.
    system: the system message of a conversation that has none; "" for none.
    """

    start: str
    around: dict[str, tuple[str, str]]
    prompt: str
    system: str

    def render(self, messages: list[dict[str, str]]) -> str:
        """Renders messages with the generation prompt, as Ollama will."""
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        texts = (message["content"].join(self.around[message["role"]]) for message in messages)
        return self.start + "".join(texts) + self.prompt

    def without_start(self, text: str) -> "Frames":
        """Returns the same without `text` at the beginning of every conversation."""
        before, after = self.around["system"]
        around = self.around if self.start else {**self.around, "system": (before.removeprefix(text), after)}
        return replace(self, start=self.start.removeprefix(text), around=around)

    def go_template(self) -> str:
        """Returns the template in Go's language."""
        cases = "{{ else ".join(f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
                                for role, (before, after) in self.around.items())
        return f"{self.start}{{{{ range .Messages }}}}{{{{ {cases}{{{{ end }}}}{{{{ end }}}}{self.prompt}"


def modelfile(export: Export, file_name: str, sampling: SamplingSettings) -> str:
    """Returns the content of a Modelfile.

    Args:
        file_name: of the GGUF file, in the same folder.
        sampling: how the next token is chosen; Ollama's own defaults differ.
    """
    lines = [f"FROM ./{file_name}", *_template_lines(export)]
    for token_id in export.stop_ids:
        lines.append(f"PARAMETER stop {json.dumps(export.tokenizer.id_to_token(token_id), ensure_ascii=False)}")
    lines += [f"PARAMETER num_ctx {export.weights.config.max_position_embeddings}",
              f"PARAMETER temperature {sampling.temperature:g}", f"PARAMETER top_p {sampling.top_p:g}",
              f"PARAMETER top_k {sampling.top_k}", f"PARAMETER repeat_penalty {sampling.repetition_penalty:g}"]
    return "\n".join(lines) + "\n"


def _template_lines(export: Export) -> list[str]:
    if export.template is None:
        return ['TEMPLATE """{{ .Prompt }}"""']
    frames = frames_of(export.template)
    if frames is None:
        return ["# The chat template does more than one of Ollama's can. Without TEMPLATE, Ollama uses its own",
                "# version of the one in the GGUF file, if it knows it."]
    if adds_bos(export):  # then it comes before the template's text
        frames = frames.without_start(export.tokenizer.special["bos_token"])
    system = [f'SYSTEM """{frames.system}"""'] if frames.system else []
    return [f'TEMPLATE """{frames.go_template()}"""', *system]


def frames_of(template: ChatTemplate) -> Frames | None:
    """Returns what a chat template writes around messages; None if it does more than that.

    Tools and thinking are left out: Ollama has its own syntax for them.
    """
    try:
        frames = _probed(template)
        agrees = all(frames.render(messages) == _rendered(template, messages) for messages in (
            [{"role": role, "content": f"{role} {turn}"} for turn, role in enumerate(roles)] for roles in CHECKED))
    except (UserError, ValueError):
        return None
    texts = (frames.start, frames.prompt, frames.system, *(text for pair in frames.around.values() for text in pair))
    return frames if agrees and not any(syntax in text for text in texts for syntax in GO_SYNTAX) else None


def _probed(template: ChatTemplate) -> Frames:
    """Takes the rendering of a conversation apart.

    Raises:
        ValueError: if a message is not in it exactly once, or the same role does not look the same everywhere.
    """
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": content} for role, content in zip(roles, PROBE, strict=True)]
    text = _rendered(template, messages)
    before, rest = text.split(SYSTEM)
    after_system, rest = rest.split(USER)
    after_user, rest = rest.split(ANSWER)
    after_answer, last = rest.split(QUESTION)
    alone, _ = _rendered(template, [messages[1]]).split(USER)

    plain_end = template.render(messages).split(QUESTION)[1]  # without the generation prompt
    prompt, before_answer = last.removeprefix(plain_end), after_user.removeprefix(plain_end)
    # An answer ends with the token that ends a turn and line breaks.
    end = after_answer.index(template.end_of_turn) + len(template.end_of_turn)
    while after_answer[end:end + 1] == "\n":
        end += 1
    after_answer, before_user = after_answer[:end], after_answer[end:]
    if not (after_system.endswith(before_user) and alone.endswith(before_user)):
        raise ValueError("a question looks different after a system message, after an answer, and alone")
    after_system = after_system[:len(after_system) - len(before_user)]
    start = alone[:len(alone) - len(before_user)]
    around = {"user": (before_user, plain_end), "assistant": (before_answer, after_answer)}
    if before.startswith(start):
        return Frames(start, {"system": (before[len(start):], after_system), **around}, prompt, "")
    system = start.removeprefix(before)
    return Frames("", {"system": (before, after_system), **around}, prompt, system[:len(system) - len(after_system)])


def _rendered(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    return template.render(messages, add_generation_prompt=True, thinking=False)
