"""Reads a model's configuration off the shapes of its tensors, for MiniMind's files, which say no more.

Generation 3 (MiniMind-3, since March 2026) is built like Qwen3: queries and keys are normalised. Generation 2
(MiniMind2 from 26 April 2025 on) has no such norm, and its mixture has experts that every token passes through. All
its models have 8 heads, which no shape tells.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.loaded import EMBEDDING, HEAD, equal_values
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.terminal import counted

Shapes = Mapping[str, tuple[int, ...]]

LAYER = "model.layers.0."
MINIMIND = {"attention_bias": "none", "norm": "rms", "positions": "rope", "mlp": "swiglu", "mlp_bias": False}
"""The values of `ModelConfig` that all generations share."""

EARLIER = re.compile(r"tok_embeddings\.weight|layers\.\d+\.attention\.wq\.weight")
ROPE_TABLES = re.compile(r"model\.freqs_(cos|sin)")
"""Buffers that hold no weights: they follow from the configuration."""

NAMES = {2: "MiniMind2", 3: "MiniMind-3"}

GENERATION_3: dict[str, Any] = {"num_attention_heads": 8, "norm_topk_prob": True}
GENERATION_2: dict[str, Any] = {
    "num_attention_heads": 8, "rms_norm_eps": 1e-5, "num_experts_per_tok": 2, "norm_topk_prob": True,
    # Its coefficient is 0.01 for an auxiliary loss whose loads sum to 1; here they sum to the experts per token.
    "router_aux_loss_coef": 0.005}
"""The values of MiniMind's configuration, where they differ from ours and no shape tells them."""


def facts_in_shapes(shapes: Shapes, path: Path, heads: int) -> dict[str, Any]:
    """Returns the fields of a configuration that the shapes of its tensors decide.

    Args:
        heads: the number of query heads, which decides the size of a head where no norm has it.

    Raises:
        UserError: if a tensor that every model has is missing, or has another number of dimensions.
    """
    def size(name: str, dimension: int = 0) -> int:
        if name not in shapes:
            raise UserError(f"{path}: not the state dict of a model: it has no {name}")
        dimensions = 1 if name.endswith(("norm.weight", ".bias")) else 2
        if len(shapes[name]) != dimensions:
            raise UserError(f"{path}: {name}: expected {dimensions} dimensions, found {list(shapes[name])}")
        return shapes[name][dimension]

    vocab_size, hidden_size = size(EMBEDDING), size(EMBEDDING, 1)
    attention, mlp = f"{LAYER}self_attn.", f"{LAYER}mlp."
    qk_norm, use_moe = f"{attention}q_norm.weight" in shapes, f"{mlp}gate.weight" in shapes
    queries, keys = size(f"{attention}q_proj.weight"), size(f"{attention}k_proj.weight")
    head_dim = max(size(f"{attention}q_norm.weight") if qk_norm else queries // heads, 1)
    facts = {"vocab_size": vocab_size, "hidden_size": hidden_size,
             "num_hidden_layers": len(_numbered("model.layers.", shapes)),
             "use_moe": use_moe, "qk_norm": qk_norm,
             "attention_bias": "all" if f"{attention}o_proj.bias" in shapes
                               else "qkv" if f"{attention}q_proj.bias" in shapes else "none",
             "norm": "layer" if f"{LAYER}input_layernorm.bias" in shapes else "rms",
             "positions": "learned" if "model.embed_positions.weight" in shapes else "rope",
             "head_dim": head_dim, "num_attention_heads": queries // head_dim, "num_key_value_heads": keys // head_dim}
    if facts["positions"] == "learned":
        facts["max_position_embeddings"] = size("model.embed_positions.weight")
    if use_moe:
        return facts | {"num_experts": size(f"{mlp}gate.weight"),
                        "num_shared_experts": len(_numbered(f"{mlp}shared_experts.", shapes)),
                        "moe_intermediate_size": size(f"{mlp}experts.0.up_proj.weight")}
    return facts | {"intermediate_size": size(f"{mlp}up_proj.weight"),
                    "mlp": "swiglu" if f"{mlp}gate_proj.weight" in shapes else "gelu",
                    "mlp_bias": f"{mlp}up_proj.bias" in shapes}


def _numbered(prefix: str, shapes: Shapes) -> set[str]:
    """Returns the numbers that follow the prefix."""
    return {found[1] for name in shapes if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", name))}


def describe(tensors: Mapping[str, Tensor], shapes: Shapes, path: Path,
             assumed: dict[str, Any]) -> tuple[ModelConfig, str]:
    """Returns the configuration of a file of MiniMind's, and a line that says what was assumed.

    Args:
        assumed: fields of the configuration that the user gave in place of MiniMind's values.

    Raises:
        UserError: if these are the weights of another model, or of MiniMind before April 2025.
    """
    _refuse_other_files(shapes, path)
    generation = 3 if f"{LAYER}self_attn.q_norm.weight" in shapes else 2
    defaults = (GENERATION_3 if generation == 3 else GENERATION_2) | assumed
    facts = facts_in_shapes(shapes, path, defaults["num_attention_heads"])
    _refuse_other_models(facts, path)
    for name, value in facts.items():
        if assumed.get(name, value) != value:
            raise UserError(f"{sidecar_path(path)}: assume.{name}: is {assumed[name]}, but the tensors in {path} have "
                            f"{value}")
    if defaults.get("num_experts_per_tok") == 1 and generation == 2:
        defaults = defaults | {"norm_topk_prob": False} | assumed  # it normalises only several
    tied = HEAD not in shapes or (EMBEDDING in shapes and equal_values(tensors[HEAD], tensors[EMBEDDING]))
    try:
        config = ModelConfig(**{"tie_word_embeddings": tied} | defaults | facts)
        if config.head_dim * config.num_attention_heads != shapes[f"{LAYER}self_attn.q_proj.weight"][0]:
            raise UserError(f"{config.num_attention_heads} heads do not divide the queries")
    except UserError as error:
        remedy = f"; {_how_to_assume(path, generation)}" if generation == 2 else ""
        raise UserError(f"{path}: its shapes do not make a model: {error}{remedy}") from error
    return config, _notice(config, path, generation, assumed)


def _refuse_other_files(shapes: Shapes, path: Path) -> None:
    earlier = next(filter(EARLIER.fullmatch, shapes), None)
    if earlier:
        raise UserError(f"{path}: {earlier}: a file of MiniMind from before 26 April 2025, whose tensors have other "
                        "names and another order; only weights from later versions can be read")


def _refuse_other_models(facts: dict[str, Any], path: Path) -> None:
    other = [f"{name} {value}" for name, value in facts.items() if value != MINIMIND.get(name, value)]
    if other:
        raise UserError(f"{path}: not a model of MiniMind's ({', '.join(other)}), and no sidecar describes it: give "
                        "the folder of Hugging Face or the GGUF file that it belongs to")


def _notice(config: ModelConfig, path: Path, generation: int, assumed: dict[str, Any]) -> str:
    heads = f"{config.num_attention_heads}/{config.num_key_value_heads} heads, "
    rest = [f"rope_theta {config.rope_theta:g}", f"rms_norm_eps {config.rms_norm_eps:g}"]
    if config.use_moe:
        chosen = config.num_experts_per_tok
        rest += [f"{counted(chosen, 'expert')} per token",
                 "weights normalised" if config.norm_topk_prob else "weights not normalised"]
    given = f" (as {sidecar_path(path)} says: {', '.join(assumed)})" if assumed else ""
    start = f"{path}: " if assumed else f"{path} has no sidecar; "
    return (f"{start}its shapes say {config.hidden_size} x {counted(config.num_hidden_layers, 'layer')}, "
            f"{heads if generation == 3 else ''}vocabulary {config.vocab_size}; for the rest "
            f"{NAMES[generation]}'s defaults are used: {'' if generation == 3 else heads}{', '.join(rest)}{given}; "
            + _how_to_assume(path, generation))


def _how_to_assume(path: Path, generation: int) -> str:
    example = {"rope_theta": 10000.0} if generation == 3 else {"num_attention_heads": 16}
    return f"other values go into {sidecar_path(path)}: {json.dumps({'assume': example})}"
