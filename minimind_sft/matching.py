"""Checks that weights, tokenizer and chat template belong together, by the facts that sidecars record."""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.template_marks import PROBE
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import BUNDLED, recorded_name, tokenizer_name
from minimind_sft.data.tokenizer_files import SPECIAL_NAMES
from minimind_sft.errors import UserError, printable
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.loaded import Weights
from minimind_sft.model.sidecar import sidecar_path

OWN_TEMPLATE = "the tokenizer's own"
FIRST_DIFFERENCES = 2
MAX_ADDED = 100
"""Added tokens listed in a sidecar."""


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns facts about the tokenizer for the sidecar, which find it again and explain a mismatch."""
    size = tokenizer.vocab_size
    return {"name": recorded_name(tokenizer_name(tokenizer.name)), "vocab_size": size,
            **{name: tokenizer.special.get(name) for name in SPECIAL_NAMES},
            "added_tokens": tokenizer.added_tokens[:MAX_ADDED],
            "tokens": {str(index): tokenizer.id_to_token(index) for index in (size // 4, size // 2, size - 1)}}


def template_facts(template: ChatTemplate, choice: str | None) -> dict[str, Any]:
    """Returns facts about the chat template for the sidecar; `choice` is `--chat_template`."""
    return {"name": choice or OWN_TEMPLATE, "end_of_turn": template.end_of_turn, "example": template.render(PROBE)}


def encoding_facts(tokenizer: Tokenizer, template: ChatTemplate | None = None,
                   choice: str | None = None) -> dict[str, Any]:
    """Collects for the sidecar which tokenizer and which chat template weights are trained with; `choice` is
    `--chat_template`."""
    return {"tokenizer": tokenizer.fingerprint, "tokenizer_facts": tokenizer_facts(tokenizer),
            "chat_template": template.fingerprint if template else None,
            "chat_template_facts": template_facts(template, choice) if template else None}


def check_tokenizer(weights: Weights, tokenizer: Tokenizer, choice: str | None) -> list[str]:
    """Compares the tokenizer with the one that the weights were trained with; returns lines for the user.

    Args:
        choice: `--tokenizer_path`, or None if not given.

    Raises:
        UserError: if they differ, if nothing says which it was, or if the embedding has too few rows.
    """
    sidecar, is_own = weights.sidecar or {}, tokenizer.name == str(weights.path)
    fingerprint, rows = sidecar.get("tokenizer"), weights.config.vocab_size
    if fingerprint is None and choice is None and not is_own:
        raise UserError(
            f"{weights.path}: nothing says which tokenizer these weights were trained with "
            f"({'its sidecar has no field tokenizer' if weights.sidecar else 'it has no sidecar'}): give "
            "--tokenizer_path FOLDER (for MiniMind's weights, its folder model/), or --tokenizer_path "
            f"{BUNDLED} for the one of this repository")
    name = tokenizer_name(tokenizer.name)
    if fingerprint not in (None, tokenizer.fingerprint):
        facts = sidecar.get("tokenizer_facts") or {"vocab_size": rows}
        was = _recorded(facts, sidecar, "--tokenizer_path", BUNDLED)
        there = {None: "another tokenizer", BUNDLED: "the bundled tokenizer"}.get(was, f"the tokenizer {was}")
        here = "the bundled one" if name == BUNDLED else name
        raise UserError(f"{sidecar_path(weights.path)}: the weights were trained with {there}, not with "
                        f"{'this version of it' if was in (name, recorded_name(name)) else here}: "
                        f"{_differences(facts, tokenizer_facts(tokenizer))}; "
                        f"{_tokenizer_remedy(was, name)}")
    if rows < tokenizer.vocab_size:
        which = "its own tokenizer" if is_own else f"the tokenizer {name}"
        raise UserError(f"{weights.path}: the embedding has {rows:,} rows, but {which} has {tokenizer.vocab_size:,} "
                        "tokens: --tokenizer_path must name the one they were trained with")
    notices = []
    if fingerprint is None and not is_own:
        hint = "; MiniMind's own weights need MiniMind's tokenizer, a different one" if name == BUNDLED else ""
        notices.append(f"{weights.path}: assuming the tokenizer {name}, as --tokenizer_path says{hint}")
    if rows > tokenizer.vocab_size:
        notices.append(f"{weights.path}: the embedding has {rows:,} rows, the tokenizer {name} "
                       f"{tokenizer.vocab_size:,} tokens; the extra rows count as padding and never appear in an "
                       "answer")
    return notices


def check_template(weights: Weights, template: ChatTemplate, choice: str | None, end_of_turn: str | None) -> None:
    """Compares the chat template with the one that the weights were trained with.

    Args:
        choice, end_of_turn: `--chat_template` and `--end_of_turn`, or None if not given.

    Raises:
        UserError: if they differ.
    """
    sidecar = weights.sidecar or {}
    if sidecar.get("chat_template") in (None, template.fingerprint):
        return
    facts = sidecar.get("chat_template_facts") or {}
    was, now = _recorded(facts, sidecar, "--chat_template", OWN_TEMPLATE), choice or OWN_TEMPLATE
    there = {None: "another chat template", OWN_TEMPLATE: "the tokenizer's own chat template"}.get(
        was, f"--chat_template {was}")
    raise UserError(f"{sidecar_path(weights.path)}: the weights were trained with {there}, not with "
                    f"{'this version of it' if was == now else now}: "
                    f"{_differences(facts, template_facts(template, choice))}; "
                    f"{_template_remedy(was, now, _flag_in_command(sidecar, '--end_of_turn', None), end_of_turn)}")


def check_adapters(adapters: Iterable[Adapter], weights: Weights, tokenizer: Tokenizer,
                   template: ChatTemplate | None, choice: str | None, end_of_turn: str | None) -> None:
    """Compares tokenizer and chat template with those that adapters for the weights were trained with.

    Args:
        template: None where no chat is rendered.
        choice, end_of_turn: `--chat_template` and `--end_of_turn`, or None if not given.

    Raises:
        UserError: if they differ.
    """
    for adapter in adapters:
        if adapter.sidecar is None:
            continue
        described = replace(weights, path=adapter.path, sidecar=adapter.sidecar)
        check_tokenizer(described, tokenizer, None)
        if template is not None:
            check_template(described, template, choice, end_of_turn)


def base_notices(adapter: Adapter, quantize: str) -> list[str]:
    """Says so if an adapter was trained on a base in another precision; `quantize` is `--quantize`."""
    trained = (adapter.sidecar or {}).get("lora", {}).get("quantize", quantize)
    if trained == quantize:
        return []
    return [f"{adapter.path} was trained with --quantize {printable(str(trained))}; on a base with --quantize "
            f"{quantize} the answers differ a little"]


def _tokenizer_remedy(was: str | None, now: str) -> str:
    if was is None or was == now:
        return "--tokenizer_path must name the folder that they were trained with, as it was then"
    return "leave out --tokenizer_path" if was == BUNDLED else f"give --tokenizer_path {shlex.quote(was)}"


def _template_remedy(was: str | None, now: str, was_end: str | None, now_end: str | None) -> str:
    give, leave = [], []
    if was is not None and was != now:
        if was == OWN_TEMPLATE:
            leave.append("--chat_template")
        else:
            give.append(f"--chat_template {shlex.quote(was)}")
    if was_end != now_end:
        if was_end:
            give.append(f"--end_of_turn {shlex.quote(was_end)}")
        else:
            leave.append("--end_of_turn")
    steps = [f"{verb} {' and '.join(flags)}" for verb, flags in (("give", give), ("leave out", leave)) if flags]
    return ", ".join(steps) or "--chat_template must name the template that they were trained with, as it was then"


def _recorded(facts: dict[str, Any], sidecar: dict[str, Any], flag: str, default: str) -> str | None:
    """Returns the name of what was used, from the facts or the command that made the weights; None if in neither."""
    name = facts.get("name") if isinstance(facts.get("name"), str) else _flag_in_command(sidecar, flag, default)
    return name if name and name.isprintable() else None


def _flag_in_command(sidecar: dict[str, Any], flag: str, default: str | None) -> str | None:
    command = (sidecar.get("training") or {}).get("command")
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        words = []
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return default if words else None


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Describes the first facts that differ."""
    found = []
    for name, now in here.items():
        was = there.get(name, now)
        if name == "name" or was == now:
            continue
        if name == "tokens" and isinstance(was, dict):
            index = next((index for index in now if was.get(index) != now[index]), None)
            if index is not None and there.get("vocab_size") == here["vocab_size"]:
                found.append(f"token {index} was {_short(was.get(index))}, here it is {_short(now[index])}")
        elif name == "added_tokens" and isinstance(was, list):
            gone, new = ([token for token in one if token not in other] for one, other in ((was, now), (now, was)))
            found += [f"the added token {_short(tokens[0])} is only {where}"
                      for tokens, where in ((gone, "there"), (new, "here")) if tokens]
        elif name == "example" and isinstance(was, str):
            at = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
            start = max(at - 20, 0)
            found.append(f"a question and its answer were ...{was[start:at + 20]!r}, here they are "
                         f"...{now[start:at + 20]!r}")
        else:
            found.append(f"{name} was {_short(was)}, here it is {_short(now)}")
    return ", ".join(found[:FIRST_DIFFERENCES]) or "they differ in what the sidecar does not spell out"


def _short(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value!r:.40}"
