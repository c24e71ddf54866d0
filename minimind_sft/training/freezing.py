"""Chooses by name which parameters a run trains: `--freeze`.

A pattern is compared with the dotted names of the parameters, part by part from the front. A part of it is a name, a
shell-style glob (`*`, `?`, `[...]`) or a range of layers, both ends included. `layers.0-5` stands for everything in the
first six layers, `layers.*.mlp` for every feed-forward network, `layers.*.self_attn.[qkv]_proj.bias` for these biases.
The leading `model.` that most names have in a state dict may be left out.
"""

from collections.abc import Sequence

from torch import nn

from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.part_names import RANGE, part_matches


def freeze(model: MiniMindForCausalLM, patterns: Sequence[str]) -> list[str]:
    """Makes the parameters that `patterns` name stay as they are; returns lines for the user.

    Raises:
        UserError: for a pattern that names nothing, or if nothing would be left to train.
    """
    for name in frozen_names(model, patterns):
        model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {' '.join(patterns)}: names every parameter, and nothing would be left to train")
    if model.config.tie_word_embeddings and not model.embed_tokens.weight.requires_grad:
        return ["embedding and head share one matrix in this model, so --freeze keeps both as they are"]
    return []


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Returns the names of the parameters that `patterns` name; a tied matrix by its first name.

    Raises:
        UserError: for a pattern that names nothing.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    named = {id(model.get_parameter(name)) for pattern in patterns for name in _named_by(pattern, names)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in named}


def trained_parameters(model: MiniMindForCausalLM) -> int:
    """Counts the numbers that training may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _named_by(pattern: str, names: Sequence[str]) -> list[str]:
    """Returns the names that begin with what the pattern describes.

    Raises:
        UserError: if there are none, with the names there are.
    """
    parts = pattern.split(".")
    front = 0 if parts[0] == "model" else 1
    rest = {name: name.split(".")[front * name.startswith("model."):] for name in names}
    for depth, part in enumerate(parts):
        rest = {name: split for name, split in rest.items() if len(split) > depth}
        there = {split[depth] for split in rest.values()}
        ends = RANGE.fullmatch(part)
        found = {one for one in there if part_matches(part, one)}
        if not found or any(str(int(end)) not in there for end in (ends.groups() if ends else ())):
            before = ".".join(parts[:depth]) or "the model"
            hint = "; blanks separate names, not commas" if "," in pattern else ""
            raise UserError(f"--freeze {pattern}: no {part!r} here; {before} has {_listed(there) or 'no parts'}{hint}")
        rest = {name: split for name, split in rest.items() if split[depth] in found}
    return list(rest)


def _listed(names: set[str]) -> str:
    numbers = sorted(int(name) for name in names if name.isdigit())
    others = sorted(name for name in names if not name.isdigit())
    return ", ".join([*([f"{numbers[0]}-{numbers[-1]}"] if numbers else []), *others])
