"""PEFT's adapters: a folder with adapter_config.json and adapter_model.safetensors, both ways.

PEFT names each module as transformers names it, so the names are those of the model's family. What others keep as one
matrix (GPT-2's c_attn, Phi-3's qkv_proj, all experts' gate_up_proj) is several projections here: peft_names.py splits
and joins such changes exactly. docs/lora_exchange.md has the facts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minimind_sft.errors import UserError, printable
from minimind_sft.files import path_exists, read_configuration
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.peft_config import PeftConfig, endings, read_config, write_config
from minimind_sft.model.adapters.peft_names import (
    EXPERT,
    Layout,
    join,
    layout_of,
    layouts,
    outputs_of,
    rows_of,
    split,
    stack,
    unstack,
)
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.family import Family
from minimind_sft.model.loaded import EMBEDDING, HEAD, all_finite, equal_values, listed
from minimind_sft.model.weights_file import read_tensors
from minimind_sft.terminal import counted
from minimind_sft.writing import create_text

CONFIG = "adapter_config.json"
TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
LORA = re.compile(r"(.+)\.lora_([AB])\.weight")
INNER = ".base_layer"
"""Where PEFT keeps what it wraps: a module, or another wrapping where it changes two parameters of one module."""


def read_peft(folder: Path, config: ModelConfig) -> Adapter:
    """Reads an adapter for a model of this configuration.

    Raises:
        UserError: if the folder cannot be read, or says what cannot be computed here; names the file and the field or
            tensor.
    """
    values = read_configuration(folder / CONFIG)
    path = _tensor_file(folder)
    stored, _, notices = read_tensors(path)
    try:
        peft = read_config(values)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    try:
        factors, whole = _sorted(stored)
        layout = _matching(layouts(config), factors, whole, config)
        factors = _by_parameter(peft, layout, factors)
        _check_places(peft, layout, factors)
        changes = {name: _change(name, pair, peft, layout, config) for name, pair in factors.items()}
        return Adapter(folder, _as_ours(changes, layout, config), _as_our_parameters(whole, layout, config),
                       notices=(*notices, *_provenance(folder, values)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _tensor_file(folder: Path) -> Path:
    for name in TENSORS:
        if path_exists(folder / name):
            return folder / name
    raise UserError(f"{folder}: has {CONFIG}, but no {TENSORS[0]}: download or save the adapter again")


def _sorted(stored: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Returns A and B by module, and the whole parameters, both under the names in the base model."""
    factors: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for stored_name in stored:
        name = stored_name.removeprefix(PREFIX)
        if name == stored_name:
            raise UserError(f"{printable(name)}: expected a name that begins with {PREFIX}, as PEFT's save_pretrained "
                            "writes")
        if found := LORA.fullmatch(name):
            factors.setdefault(found[1], {})[found[2]] = stored[stored_name].to(torch.float32)
        elif ".lora_embedding_" in name:
            raise UserError(f"{printable(name)}: an adapter on the embedding is not supported: train without it, or "
                            "the embedding in full (modules_to_save)")
        elif ".lora_" in name:
            raise UserError(f"{printable(name)}: not a matrix of a plain LoRA adapter (lora_A.weight, lora_B.weight)")
        else:
            whole[name.replace(f"{INNER}.", ".")] = stored[stored_name].to(torch.float32)
    for module, pair in factors.items():
        if len(pair) < 2:
            there = "".join(pair)
            missing = "B" if there == "A" else "A"
            raise UserError(f"{PREFIX}{printable(module)}.lora_{missing}.weight: missing, but lora_{there} is there: "
                            "download or save the adapter again")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise UserError(f"{printable(module)}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}, expected "
                            "[rank, inputs] and [outputs, rank]")
    return factors, whole


def _matching(candidates: Sequence[Layout], factors: Mapping[str, Any], whole: Mapping[str, Any],
              config: ModelConfig) -> Layout:
    """Returns the names of the family that the adapter was made for."""
    def unknown(layout: Layout) -> list[str]:
        stacks = {name.rpartition(".")[0] for name in layout.stacks}
        places = {*layout.modules, *stacks, *(f"{name}{INNER}" for name in stacks if len(layout.stacks) > len(stacks))}
        tied = {HEAD} if config.tie_word_embeddings else set()
        return [*(name for name in factors if name not in places),
                *(name for name in whole if name not in layout.tensors.keys() | layout.stacks.keys() | tied)]

    layout = min(candidates, key=lambda one: len(unknown(one)))
    names = unknown(layout)
    if not names:
        return layout
    if names[0].endswith(".mlp.gate"):
        raise UserError(f"{names[0]}: an adapter on the router is not supported: train without it (PEFT's all-linear "
                        "includes it)")
    if names[0] == HEAD.removesuffix(".weight"):
        raise UserError(f"{names[0]}: an adapter on the head, which this model shares with its embedding "
                        "(tie_word_embeddings): merging it would separate the two")
    raise UserError(f"{listed(names)}: unknown in this model, whose modules PEFT names {listed(list(layout.modules))}")


def _by_parameter(peft: PeftConfig, layout: Layout, factors: dict[str, Any]) -> dict[str, Any]:
    """Gives the changes of stacked experts the names of the parameters that they change.

    PEFT names them by how often it has wrapped the experts: once for each of `target_parameters`, in the order in which
    the experts hold them.
    """
    named = dict(factors)
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in layout.stacks):
        there = [named.pop(name) for name in (f"{parent}{INNER}", parent) if name in named]
        if not there:
            continue
        wanted = [name for name in layout.stacks if name.startswith(f"{parent}.") and peft.targets_parameter(name)]
        if len(wanted) != len(there):
            raise UserError(f"{parent}: has {counted(len(there), 'pair')} of matrices, but target_parameters in "
                            f"{CONFIG} names {len(wanted)} of its parameters")
        named |= zip(wanted, there, strict=True)
    return named


def _check_places(peft: PeftConfig, layout: Layout, factors: Mapping[str, Any]) -> None:
    """Checks that the file changes exactly what its configuration names."""
    stacked = any(name in layout.stacks for name in factors)
    modules = [name for name, ours in layout.modules.items() if not (stacked and EXPERT.fullmatch(ours[0]))]
    targets = [*filter(peft.targets, modules), *filter(peft.targets_parameter, layout.stacks)]
    if absent := [name for name in targets if name not in factors]:
        raise UserError(f"{listed(absent)}: missing, but {CONFIG} names it as a target: download or save the adapter "
                        "again")
    if extra := [name for name in factors if name not in targets]:
        raise UserError(f"{listed(extra)}: has an adapter, but is no target in {CONFIG}")
    if peft.fan_in_fan_out and not layout.transposed & factors.keys():
        raise UserError(f"fan_in_fan_out in {CONFIG} is true, but no matrix of this model is kept as (inputs, outputs)")


def _change(name: str, pair: Mapping[str, Tensor], peft: PeftConfig, layout: Layout, config: ModelConfig) -> Change:
    """Returns the change of one of their matrices, or of one of their stacks."""
    change, experts = Change(pair["A"], pair["B"], peft.scale(name)), 1
    if name in layout.stacks:
        experts = config.num_experts
    if change.a.shape[0] != peft.rank(name) * experts:
        of_experts = f" of {experts} experts" if experts > 1 else ""
        raise UserError(f"{name}: lora_A has {change.a.shape[0]} rows{of_experts}, but {CONFIG} says rank "
                        f"{peft.rank(name)}")
    outputs = sum(outputs_of(config, _ours(name, layout)))
    if change.b.shape[0] != outputs:
        raise UserError(f"{name}: lora_B has {change.b.shape[0]} outputs, but the matrix has {outputs}")
    return stack(change, experts) if name in layout.stacks else change


def _ours(name: str, layout: Layout) -> tuple[str, ...]:
    """Returns our projections in one of their matrices or stacks."""
    return layout.stacks[name] if name in layout.stacks else layout.modules[name]


def _as_ours(changes: Mapping[str, Change], layout: Layout, config: ModelConfig) -> dict[str, Change]:
    """Returns the changes by our projections."""
    found: dict[str, Change] = {}
    experts: dict[str, dict[int, Change]] = {}
    for name, change in changes.items():
        ours = _ours(name, layout)
        for one, part in zip(ours, split(change, outputs_of(config, ours)), strict=True):
            of = EXPERT.fullmatch(one)
            if part is not None and of:
                experts.setdefault(f"{of[1]}.{of[3]}", {})[int(of[2])] = part
            elif part is not None:
                found[one] = part
    return found | {name: _gathered(name, parts, config) for name, parts in experts.items()}


def _gathered(name: str, parts: dict[int, Change], config: ModelConfig) -> Change:
    """Returns the changes of single experts as one."""
    absent = next((expert for expert in range(config.num_experts) if expert not in parts), None)
    if absent is not None:
        raise UserError(f"{name}: expert {absent} has no adapter, but others have")
    changes = [parts[expert] for expert in range(config.num_experts)]
    if len({(change.a.shape, change.b.shape, change.scale) for change in changes}) > 1:
        raise UserError(f"{name}: the experts have adapters of different ranks or scales, which is not supported")
    return Change(torch.stack([change.a for change in changes]), torch.stack([change.b for change in changes]),
                  changes[0].scale)


def _as_our_parameters(whole: Mapping[str, Tensor], layout: Layout, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the parameters that were trained in full by our names; a tied head is left out."""
    _check_tied(whole, layout, config)
    found: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        if name == HEAD and config.tie_word_embeddings:
            continue
        entry = layout.tensors.get(name)
        ours = entry.ours if entry else layout.stacks[name]
        rows, outputs = rows_of(config, ours), tensor.shape[0 if entry and not entry.transposed else 1]
        if outputs != sum(rows):
            raise UserError(f"{name}: has shape {list(tensor.shape)}, but this model has {sum(rows)} outputs there")
        found |= zip(ours, entry.to_ours(tensor, rows) if entry else tensor.split(rows, 1), strict=True)
    return found


def _check_tied(whole: Mapping[str, Tensor], layout: Layout, config: ModelConfig) -> None:
    """Checks that embedding and head are still one matrix where the model has one."""
    if not config.tie_word_embeddings:
        return
    pair = (next(name for name, entry in layout.tensors.items() if entry.ours == (EMBEDDING,)), HEAD)
    there = [name for name in pair if name in whole]
    if len(there) == 1:
        raise UserError(f"{there[0]}: trained in full, but {', '.join({*pair} - {*there})} is not there: the model has "
                        "one matrix for both, and PEFT trained a copy; train with ensure_weight_tying=True")
    if there and not equal_values(whole[pair[0]], whole[pair[1]]):
        raise UserError(f"{HEAD}: differs from {pair[0]}, but the model has one matrix for both (tie_word_embeddings): "
                        "train with ensure_weight_tying=True")


def _provenance(folder: Path, values: Mapping[str, Any]) -> list[str]:
    base = values.get("base_model_name_or_path")
    named = f" for {printable(base)}" if isinstance(base, str) and base else ""
    return [f"{folder}: an adapter of PEFT{named}; nothing in it identifies the weights it was trained on"]


# Writing


def write_peft(folder: Path, adapter: Adapter, family: Family, config: ModelConfig, base: str | None = None,
               dtype: str = "float32") -> None:
    """Writes adapter_config.json and adapter_model.safetensors into an existing folder.

    Args:
        family: a family that can hold the model; its names are those that PEFT will look for.
        base: name or folder of the base model, for those who read the folder.

    Raises:
        UserError: if the adapter has parts that PEFT cannot hold, or values too large for `dtype`.
    """
    layout = layout_of(family, config)
    assert layout is not None, "choose_family returns a family that holds every tensor"
    changes = _as_theirs(adapter, layout, config)
    saved = _as_their_parameters(adapter, layout, config)
    tensors = {PREFIX + name: tensor.to(getattr(torch, dtype)).contiguous()
               for name, tensor in (_matrices(changes, layout) | _places(saved, changes)).items()}
    if bad := [name for name, tensor in tensors.items() if not all_finite(tensor)]:
        raise UserError(f"{adapter.path}: {listed(bad)}: not finite in {dtype}; nothing was written (float32 holds "
                        "larger numbers)")
    modules = [name for name in changes if name in layout.modules]
    in_full = list(dict.fromkeys(name.rpartition(".")[0] for name in saved if name.rpartition(".")[0] not in changes))
    everything = [*layout.modules, *layout.leaves]
    content = write_config(
        {name: (change.a.shape[-2], change.scale) for name, change in changes.items()},
        {"target_modules": endings(modules, everything),
         "target_parameters": endings([name for name in changes if name in layout.stacks], list(layout.stacks)) or None,
         "modules_to_save": endings(in_full, everything) or None,
         "ensure_weight_tying": config.tie_word_embeddings and HEAD in saved,
         "fan_in_fan_out": bool(layout.transposed & changes.keys())}, base)
    create_text(folder / CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    save_file(tensors, folder / TENSORS[0], metadata={"format": "pt"})


def _matrices(changes: Mapping[str, Change], layout: Layout) -> dict[str, Tensor]:
    """Returns A and B of each change under PEFT's names."""
    found: dict[str, Tensor] = {}
    for name, change in changes.items():
        flat, wrapped = unstack(change) if name in layout.stacks else change, _wrapped(name, changes, layout)
        found |= {f"{wrapped}.lora_A.weight": flat.a, f"{wrapped}.lora_B.weight": flat.b}
    return found


def _places(saved: Mapping[str, Tensor], changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Returns the parameters under PEFT's names; those of a module with an adapter are inside its wrapping."""
    parts = ((*name.rpartition("."), tensor) for name, tensor in saved.items())
    return {f"{module}{INNER if module in changes else ''}.{own}": tensor for module, _, own, tensor in parts}


def _wrapped(name: str, changes: Mapping[str, Change], layout: Layout) -> str:
    """Returns the module's name with PEFT's wrappings of stacked experts, as `_by_parameter` describes them."""
    if name in layout.modules:
        return name
    parent = name.rpartition(".")[0]
    wrapped = [one for one in layout.stacks if one in changes and one.rpartition(".")[0] == parent]
    return parent + INNER * (len(wrapped) - 1 - wrapped.index(name))


def _as_theirs(adapter: Adapter, layout: Layout, config: ModelConfig) -> dict[str, Change]:
    """Returns the changes by their modules and parameters."""
    found = {}
    for name, ours in [*layout.modules.items(), *layout.stacks.items()]:
        parts = [adapter.changes.get(one) for one in ours]
        if any(parts):
            found[name] = join(parts, outputs_of(config, ours))
    if not found:
        raise UserError(f"{adapter.path}: changes no projection, and PEFT has no adapter without one")
    return found


def _as_their_parameters(adapter: Adapter, layout: Layout, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the parameters that were trained in full by their names; of a tied model, the head's as well."""
    left = dict(adapter.saved)
    found = {}
    for name, ours in {**{name: entry.ours for name, entry in layout.tensors.items()}, **layout.stacks}.items():
        if any(one in left for one in ours):
            if absent := [one for one in ours if one not in left]:
                raise UserError(f"{adapter.path}: {listed(absent)}: not trained in full, but other parts of {name} "
                                "were, which PEFT saves as a whole")
            parts = [left.pop(one) for one in ours]
            entry = layout.tensors.get(name)
            found[name] = entry.to_theirs(parts) if entry else torch.cat(parts, 1)
            if ours == (EMBEDDING,) and config.tie_word_embeddings:
                found[HEAD] = found[name].clone()
    if left:
        raise UserError(f"{adapter.path}: {listed(list(left))}: has no place in PEFT's adapters")
    return found
