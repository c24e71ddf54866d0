"""Writes MiniMind's own .pth: a state dict in half precision under its names, the head included.

Our names and shapes are MiniMind's, so nothing is translated. But its file has no configuration: MiniMind's programs
build the model from their flags and `MiniMindConfig`'s defaults. Each generation has its own
(jingyaogong/minimind, model/model_minimind.py: generation 3 since 2026, generation 2 before).
"""

import errno
import json
import math
import os
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minimind_sft.errors import UserError
from minimind_sft.export.model import Export
from minimind_sft.export.progress import with_bar
from minimind_sft.export.tensors import rounded
from minimind_sft.files import sha256_of_file
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import EMBEDDING, HEAD
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.writing import create_text

KEPT = ("stage", "training", "family")
"""Fields of the weights' own sidecar that stay true."""


@dataclass(frozen=True)
class Generation:
    """One generation of MiniMind.

    fixed: the values of our fields that its code computes with, whatever its configuration says.
    arguments: our fields that are arguments of its `MiniMindConfig`, by the names there.
    defaults: the values of those arguments in its programs, which set only hidden size, layers and mixture.
    """

    name: str
    fixed: dict[str, Any]
    arguments: dict[str, str]
    defaults: dict[str, Any]


_SAME = {"attention_bias": "none", "mlp_bias": False, "norm": "rms", "mlp": "swiglu", "positions": "rope",
         "sliding_window": None, "layers_without_rope": ()}
_SIZES = ("vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings",
          "rms_norm_eps", "rope_theta")

THIRD = Generation(
    "MiniMind-3", {**_SAME, "qk_norm": True, "num_shared_experts": 0},
    {name: name for name in (*_SIZES, "head_dim", "tie_word_embeddings", "num_experts", "num_experts_per_tok",
                             "moe_intermediate_size")},
    {"vocab_size": 6400, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 32768,
     "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "num_experts": 4, "num_experts_per_tok": 1})
SECOND = Generation(
    "MiniMind-2", {**_SAME, "qk_norm": False, "tie_word_embeddings": True},
    {**{name: name for name in _SIZES}, "num_experts": "n_routed_experts", "num_experts_per_tok": "num_experts_per_tok",
     "num_shared_experts": "n_shared_experts"},
    {"vocab_size": 6400, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32768,
     "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1})


def generation_of(config: ModelConfig) -> Generation:
    """Returns the generation of MiniMind that computes what the model does.

    Raises:
        UserError: naming the fields that it cannot express.
    """
    generation = THIRD if config.qk_norm else SECOND
    problems = [f"{name} is {getattr(config, name)!r}, {generation.name} has only {value!r}"
                for name, value in _fixed(config, generation).items() if getattr(config, name) != value]
    problems += _expert_problems(config, generation)
    stretched = generation is THIRD and config.rope_scaling == RopeScaling()
    if config.rope_scaling is not None and not stretched:
        problems.append(f"rope_scaling is {config.rope_scaling.rope_type}, {generation.name} has only its own YaRN")
    if problems:
        raise UserError(f"MiniMind cannot express this model: {'; '.join(problems)}; try --to huggingface")
    return generation


def _fixed(config: ModelConfig, generation: Generation) -> dict[str, Any]:
    fixed = dict(generation.fixed)
    if generation is SECOND:
        fixed["head_dim"] = config.hidden_size // config.num_attention_heads
    if not config.use_moe:
        fixed.pop("num_shared_experts", None)
    return fixed


def _expert_problems(config: ModelConfig, generation: Generation) -> list[str]:
    """Says why MiniMind would weigh the chosen experts differently; MiniMind-2 does not normalise a single one."""
    normalises = generation is THIRD or config.num_experts_per_tok > 1
    if not config.use_moe or config.norm_topk_prob == normalises:
        return []
    if normalises:
        return ["norm_topk_prob is off: the chosen experts count by their probabilities, but MiniMind divides these by "
                "their sum"]
    return ["norm_topk_prob is on: the one chosen expert counts fully, but MiniMind-2 multiplies it by its probability"]


def arguments_of(config: ModelConfig) -> dict[str, Any]:
    """Returns the arguments of `MiniMindConfig` that MiniMind's programs have no flag for and that are not its
    defaults."""
    generation = generation_of(config)
    defaults = generation.defaults | _derived_defaults(config, generation)
    found = {}
    for ours, theirs in generation.arguments.items():
        value = getattr(config, _source(ours, config, generation))
        is_used = config.use_moe or ours not in ("num_experts", "num_experts_per_tok", "num_shared_experts",
                                                 "moe_intermediate_size")
        is_used &= not (config.use_moe and generation is THIRD and ours == "intermediate_size")
        if is_used and value != defaults[ours]:
            found[theirs] = value
    if config.rope_scaling is not None:
        found["inference_rope_scaling"] = True
    return found


def _source(ours: str, config: ModelConfig, generation: Generation) -> str:
    """Returns our field behind an argument: the experts of MiniMind-2 are as wide as its dense network."""
    is_expert_width = ours == "intermediate_size" and config.use_moe and generation is SECOND
    return "moe_intermediate_size" if is_expert_width else ours


def _derived_defaults(config: ModelConfig, generation: Generation) -> dict[str, int]:
    hidden = config.hidden_size
    width = math.ceil(hidden * math.pi / 64) if generation is THIRD else math.ceil(int(hidden * 8 / 3) / 64)
    return {"intermediate_size": 64 * width, "moe_intermediate_size": 64 * width,
            "head_dim": hidden // config.num_attention_heads}


def write_state_dict(path: Path, export: Export, facts: dict[str, Any]) -> None:
    """Writes the .pth, and beside it a sidecar, which says what MiniMind's file leaves out; MiniMind ignores it.

    Args:
        facts: what the sidecar says about tokenizer and chat template.

    Raises:
        UserError: if a value is too large for the dtype.
    """
    config, shapes = export.weights.config, tensor_shapes(export.weights.config)
    tensors = {name: rounded(export.weights.tensors[name], name, export.dtype)
               for name in with_bar(shapes, f"reading {export.weights.path.name}")}
    tensors.setdefault(HEAD, tensors[EMBEDDING])
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # PyTorch's for a file that cannot be written to its end
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    earlier = {name: value for name, value in (export.weights.sidecar or {}).items() if name in KEPT}
    sidecar = {"sha256": sha256_of_file(path), "model": asdict(replace(config, dropout=0.0)), "dtype": export.dtype,
               "parameters": sum(math.prod(shape) for shape in shapes.values()), **earlier, **facts}
    create_text(sidecar_path(path), json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n")


def next_steps(config: ModelConfig, output: Path, tokenizer: str | Path) -> list[str]:
    """Returns lines that say how to use the file in a clone of MiniMind, whose programs find weights by name and size.

    Args:
        tokenizer: the folder of the weights' tokenizer, or the GGUF file that has it.
    """
    ending = f"_{config.hidden_size}{'_moe' if config.use_moe else ''}"
    name = output.stem.removesuffix(ending)
    generation = generation_of(config).name
    lines = []
    if not output.stem.endswith(ending):
        lines.append(f"MiniMind's programs look for NAME{ending}.pth: rename the file to {output.stem}{ending}.pth")
    if arguments := arguments_of(config):
        listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        lines.append(f"{generation}'s programs have no flags for some of its sizes: put {listed} into their "
                     "MiniMindConfig(...)")
    if Path(tokenizer).is_file():
        lines.append(f"MiniMind needs the tokenizer of {tokenizer} as a folder: --to huggingface writes one")
    elif "model" not in str(Path(tokenizer).resolve()):
        lines.append(f"MiniMind takes a folder for a tokenizer's only if its path contains the word model: copy "
                     f"{tokenizer} to such a place")
    flags = [f"--num_hidden_layers {config.num_hidden_layers}"] * (config.num_hidden_layers != 8)
    flags += ["--use_moe 1"] * config.use_moe
    save_dir, load_from = (shlex.quote(str(Path(one).resolve())) for one in (output.parent, tokenizer))
    words = ["python eval_llm.py", f"--save_dir {save_dir}", f"--weight {name}", f"--hidden_size {config.hidden_size}",
             *flags, f"--load_from {load_from}"]
    return [*lines, f"Use it in a clone of {generation}:", f"    {' '.join(words)}"]
