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
from minimind_sft.model.part_names import ends_of, part_matches
from minimind_sft.settings.lora import ALL_LINEAR

HEAD = "lm_head"


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
    """Returns the projections that `--target_modules` names; the head, if it has its own matrix, only by its name.

    Raises:
        UserError: for a pattern that matches nothing, or has a range beyond the layers; lists what exists, or says why
            a module takes no adapter.
    """
    names = projections(model)
    head = [] if model.config.tie_word_embeddings else [HEAD]
    chosen: set[str] = set()
    for pattern in patterns:
        found = names if pattern == ALL_LINEAR else [name for name in (*names, *head) if matches(pattern, name)]
        missing = "" if pattern == ALL_LINEAR else _missing_end(pattern, (*names, *head))
        if missing or not found:
            raise UserError(f"--target_modules {pattern}: {missing}{_why_none(model, pattern)}")
        chosen.update(found)
    return [name for name in (*names, *head) if name in chosen]


def _why_none(model: MiniMindForCausalLM, pattern: str) -> str:
    modules = [module for name, module in model.named_modules() if name and matches(pattern, name)]
    in_full = f"--modules_to_save {pattern} trains it in full"
    if model.lm_head in modules:
        return ("the head has the embedding's matrix (tie_word_embeddings), and merging an adapter would separate the "
                f"two; {in_full}, as both")
    for kind, called in ((Router, "router"), (nn.Embedding, "embedding")):
        if any(isinstance(module, kind) for module in modules):
            return f"the {called} takes no adapter; {in_full}"
    there = dict.fromkeys(name.rpartition(".")[2] for name in projections(model))
    return (f"matches no projection; there are {', '.join(there)} in layers "
            f"0-{model.config.num_hidden_layers - 1}, and {ALL_LINEAR} for all of them{_hint(pattern)}")


def _missing_end(pattern: str, names: Sequence[str], at_end: bool = False) -> str:
    """Returns the pattern with the end of a range that matches none of the names, and a blank; "" if all do."""
    ends = [end for end in ends_of(pattern) if end != pattern]
    return next((f"{end} " for end in ends if not any(matches(end, name, at_end) for name in names)), "")


def _hint(pattern: str) -> str:
    return "; blanks separate names, not commas" if "," in pattern else ""


def chosen_modules(model: MiniMindForCausalLM, patterns: Sequence[str]) -> list[str]:
    """Returns the modules that `--modules_to_save` names.

    Raises:
        UserError: for a pattern that matches nothing, or has a range beyond the layers.
    """
    names = [name for name, module in model.named_modules()
             if name and (list(module.parameters()) or list(module.buffers()))]  # a matrix in 4 bits is a buffer
    chosen = []
    for pattern in patterns:
        found = [name for name in names if matches(pattern, name, at_end=True)]
        missing = _missing_end(pattern, names, at_end=True)
        if missing or not found:
            raise UserError(f"--modules_to_save {pattern}: {missing}matches no module; there are embed_tokens, "
                            f"lm_head, norm and the parts of each layer{_hint(pattern)}")
        chosen += found
    return chosen


def check_choice(model: MiniMindForCausalLM, targets: Sequence[str], in_full: Sequence[str], rank: int) -> None:
    """Checks which modules were chosen for an adapter, and which to train in full, before the model is changed.

    Raises:
        UserError: if the rank is beyond the smaller side of a matrix, or a module was chosen for both.
    """
    for name in targets:
        outputs, inputs = _matrix_shape(model, name)
        if rank > min(outputs, inputs):
            raise UserError(f"--lora_rank {rank}: {name} is a matrix of {outputs} x {inputs}, so its rank is at most "
                            f"{min(outputs, inputs)}; choose a lower rank or other --target_modules")
    for name in in_full:
        both = next((target for target in targets if f"{target}.".startswith(f"{name}.")), None)
        if both:
            raise UserError(f"--modules_to_save {name}: {both} would train in full and also have an adapter; name only "
                            "other projections in --target_modules")


def tied_notices(model: MiniMindForCausalLM) -> list[str]:
    """Says that embedding and head train together, if they are one matrix and it trains."""
    if model.config.tie_word_embeddings and model.lm_head.weight.requires_grad:
        return ["embedding and head are one matrix (tie_word_embeddings): it trains in full, as both"]
    return []


def _matrix_shape(model: MiniMindForCausalLM, projection: str) -> tuple[int, int]:
    """Returns outputs and inputs of a projection, in a stack of one expert's."""
    parent, _, own = projection.rpartition(".")
    place = getattr(model.get_submodule(parent), own)
    if isinstance(place, nn.Linear):
        return place.out_features, place.in_features
    _, outputs, inputs = place.shape
    return outputs, inputs


def matches(pattern: str, name: str, at_end: bool = False) -> bool:
    """Whether some stretch of the name's parts, or its end, is what the pattern describes."""
    wanted, parts = pattern.split("."), name.split(".")
    starts = range(len(parts) - len(wanted) + 1)
    return any(all(map(part_matches, wanted, parts[start:]))
               for start in (starts[-1:] if at_end else starts))
