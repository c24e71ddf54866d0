"""Chooses by name which projections get an adapter: `--target_modules`, and which modules train in full:
`--modules_to_save`.

A pattern is compared part by part with any stretch of a module's dotted name. A part of it is a name, a shell-style
glob (`*`, `?`, `[...]`) or a range of layers, both ends included: `q_proj`, `self_attn.[qv]_proj`, `layers.0-5.mlp`.
"""

from collections.abc import Sequence

from torch import nn

from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import STACKED
from minimind_sft.model.moe import Experts, Router
from minimind_sft.model.part_names import part_matches

ALL_LINEAR = "all-linear"


def projections(model: MiniMindForCausalLM) -> list[str]:
    """Lists the projections of attention and feed-forward networks, those of stacked experts included."""
    found = []
    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, nn.Linear) and not isinstance(module, Router):
            found.append(name)
        elif isinstance(module, Experts):
            found += [f"{name}.{matrix}" for matrix in STACKED]
    return found


def chosen_projections(model: MiniMindForCausalLM, patterns: Sequence[str]) -> list[str]:
    """Returns the projections that `--target_modules` names.

    Raises:
        UserError: for a pattern that matches nothing; lists what exists.
    """
    names = projections(model)
    chosen: set[str] = set()
    for pattern in patterns:
        found = names if pattern == ALL_LINEAR else [name for name in names if matches(pattern, name)]
        if not found:
            there = sorted({name.rpartition(".")[2] for name in names})
            raise UserError(f"--target_modules {pattern}: matches no projection; there are {', '.join(there)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def chosen_modules(model: MiniMindForCausalLM, patterns: Sequence[str]) -> list[str]:
    """Returns the modules that `--modules_to_save` names.

    Raises:
        UserError: for a pattern that matches nothing.
    """
    names = [name for name, module in model.named_modules()
             if name and (list(module.parameters()) or list(module.buffers()))]  # a matrix in 4 bits is a buffer
    chosen = []
    for pattern in patterns:
        found = [name for name in names if matches(pattern, name, at_end=True)]
        if not found:
            raise UserError(f"--modules_to_save {pattern}: matches no module; there are embed_tokens, lm_head, norm "
                            "and the parts of each layer")
        chosen += found
    return chosen


def matches(pattern: str, name: str, at_end: bool = False) -> bool:
    """Whether some stretch of the name's parts, or its end, is what the pattern describes."""
    wanted, parts = pattern.split("."), name.split(".")
    starts = range(len(parts) - len(wanted) + 1)
    return any(all(map(part_matches, wanted, parts[start:]))
               for start in (starts[-1:] if at_end else starts))
