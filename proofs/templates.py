"""Lists the chat templates for proofs and tests, each with a tokenizer that has its control tokens."""

import json
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from minimind_sft.data.chat_template import BUNDLED_TEMPLATES, ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.paths import in_repository

LOOKS_LIKE_A_TOKEN = re.compile(
    r"<[|｜][^<>{}' +\n]*?[|｜]?>|<[a-z_]+[|｜]>|\[/?[A-Z_]+\]|\[gMASK\]|</?(?:think|tool_call|tool_response|"
    r"start_of_turn|end_of_turn|start_of_image|end_of_utterance|image|sop|arg_key|arg_value|s)>")
"""Matches control tokens of the models that the templates were written for."""


class NamedTemplate(NamedTuple):
    name: str
    source: str
    tokenizer: Tokenizer

    def load(self) -> ChatTemplate:
        """Returns the template, with an end of turn if it writes none itself.

        Raises:
            UserError: if the template is not supported.
        """
        try:
            return ChatTemplate(self.tokenizer, self.source)
        except UserError as error:
            if "--end_of_turn" not in str(error):
                raise
            return ChatTemplate(self.tokenizer, self.source, self.tokenizer.special["eos_token"])


def all_templates(minimind: Path | None = None) -> list[NamedTemplate]:
    """Returns the bundled templates, MiniMind-3's from its tokenizer's folder, and TRL's if it is installed."""
    found = bundled_templates()
    if minimind:
        tokenizer = Tokenizer.from_folder(minimind)
        found.append(NamedTemplate("minimind-3", tokenizer.chat_template or "", tokenizer))
    return found + [NamedTemplate(f"trl/{name}", source, tokenizer_for(source))
                    for name, source in trl_templates().items()]


def bundled_templates() -> list[NamedTemplate]:
    tokenizer = Tokenizer.from_folder(in_repository("model"))
    return [NamedTemplate(name, (files("minimind_sft.data") / f"{name}.jinja").read_text(encoding="utf-8"), tokenizer)
            for name in BUNDLED_TEMPLATES]


def trl_templates() -> dict[str, str]:
    """Returns the sources of TRL's templates by name; empty if TRL is not installed."""
    if not find_spec("trl"):
        return {}
    folder = files("trl") / "chat_templates"
    return {file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8")
            for file in sorted(folder.iterdir(), key=lambda file: file.name) if file.name.endswith(".jinja")}


def tokenizer_for(source: str) -> Tokenizer:
    """Returns the bundled tokenizer plus everything in a template's source that looks like a control token."""
    state = json.loads((Path(in_repository("model")) / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    tokens = sorted({*LOOKS_LIKE_A_TOKEN.findall(source), "<bos>", "<eos>"})
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    state["added_tokens"] = sorted(({"id": vocabulary[token], "content": token, "single_word": False, "lstrip": False,
                                     "rstrip": False, "normalized": False, "special": True} for token in tokens),
                                   key=lambda entry: entry["id"])
    return Tokenizer(state, {"bos_token": "<bos>", "eos_token": "<eos>"}, source)
