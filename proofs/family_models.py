"""Tiny models of every family in transformers, which is the judge, and ours read from their folders."""

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.folder import read_folder

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 16, "rope_theta": 1000.0,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
GPT2_SIZES = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 48, "bos_token_id": 1,
              "eos_token_id": 2}
MOE_SIZES = {**SIZES, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
LENGTHS = (1, 7, 23, 40)
"""Of the documents; ascending, because transformers' dynamic RoPE remembers the longest one it has seen."""

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 12}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama tied, head_dim": ("llama", {**SIZES, "tie_word_embeddings": True, "head_dim": 10}),
    "llama biases": ("llama", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama linear": ("llama", {**SIZES, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama dynamic": ("llama", {**SIZES, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama llama3": ("llama", {**SIZES, "rope_scaling": LLAMA3, "head_dim": 16, "rope_theta": 50.0}),
    "llama yarn": ("llama", {**SIZES, "rope_scaling": YARN, "head_dim": 16}),
    "llama yarn mscale": ("llama", {**SIZES, "head_dim": 16, "rope_scaling": {
        **YARN, "mscale": 1.3, "mscale_all_dim": 0.7, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False}}),
    "qwen2": ("qwen2", SIZES),
    "qwen2 windows": ("qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
                                "tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", {**SIZES, "rope_scaling": YARN}),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 8}),
    "qwen3 biases, windows": ("qwen3", {
        **SIZES, "head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", MOE_SIZES),
    "qwen3_moe normalised": ("qwen3_moe", {**MOE_SIZES, "norm_topk_prob": True, "attention_bias": True,
                                           "use_sliding_window": True, "sliding_window": 6}),
    "mistral": ("mistral", {**SIZES, "sliding_window": 5, "head_dim": 8}),
    "mistral without window": ("mistral", {**SIZES, "sliding_window": None}),
    "gpt2": ("gpt2", GPT2_SIZES),
    "gpt2 untied": ("gpt2", {**GPT2_SIZES, "n_inner": 40, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "smollm3": ("smollm3", {**SIZES, "no_rope_layer_interval": 2}),
    "smollm3 biases, windows": ("smollm3", {**SIZES, "no_rope_layers": [0, 1], "use_sliding_window": True,
                                            "sliding_window": 3, "attention_bias": True, "mlp_bias": True}),
    "phi3": ("phi3", SIZES),
    "phi3 window": ("phi3", {**SIZES, "sliding_window": 9, "tie_word_embeddings": True}),
}


@dataclass
class Batch:
    """Documents one after the other. Labels are shifted, and none reaches into the next document."""

    input_ids: Tensor
    labels: Tensor
    cu_seqlens: tuple[int, ...]

    def documents(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start, end in itertools.pairwise(self.cu_seqlens):
            yield self.input_ids[start:end], self.labels[start:end]


def batch(lengths: tuple[int, ...] = LENGTHS, vocab_size: int = 61) -> Batch:
    torch.manual_seed(1)
    input_ids, cu_seqlens = torch.randint(vocab_size, (sum(lengths),)), (0, *itertools.accumulate(lengths))
    labels = input_ids.roll(-1).masked_fill(torch.rand(sum(lengths)) < 0.4, IGNORE_INDEX)
    labels[[end - 1 for end in cu_seqlens[1:]]] = IGNORE_INDEX
    return Batch(input_ids, labels, cu_seqlens)


def their_model(model_type: str, values: dict[str, Any], seed: int = 0) -> transformers.PreTrainedModel:
    """Returns transformers' model with weights that are large enough for every part to affect the result."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **json.loads(json.dumps(values)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(float(is_norm), 0.3)
    return model


def our_model(folder: Path) -> MiniMindForCausalLM:
    return read_folder(folder).build_model().eval()


def their_logits(model: transformers.PreTrainedModel, documents: Batch) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(ids[None]).logits[0] for ids, _ in documents.documents()])


def our_logits(model: MiniMindForCausalLM, documents: Batch) -> Tensor:
    with torch.no_grad():
        return model.document_logits(documents.input_ids, documents.cu_seqlens)


def their_loss(model: transformers.PreTrainedModel, documents: Batch) -> Tensor:
    """Returns the sum over supervised tokens of transformers' loss, which shifts labels itself."""
    total = torch.zeros(())
    for ids, labels in documents.documents():
        supervised = int((labels != IGNORE_INDEX).sum())
        if supervised:
            unshifted = F.pad(labels[:-1], (1, 0), value=IGNORE_INDEX)
            total = total + model(ids[None], labels=unshifted[None]).loss * supervised
    return total


def gradients(model: torch.nn.Module) -> torch.nn.Module:
    """Puts the gradients in the place of the weights: they can then be saved and compared under any names."""
    for parameter in model.parameters():
        parameter.data = parameter.grad
    return model


def as_old(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a config.json of transformers 5 as version 4 wrote it, before it knew the keys of later years."""
    values = copy.deepcopy(values)
    rope = values.pop("rope_parameters", None)
    if rope is not None:
        values["rope_theta"] = rope.pop("rope_theta")
        rope.pop("partial_rotary_factor", None)
        kind = rope.pop("rope_type")
        values["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    if "num_local_experts" in values:
        values["num_experts"] = values.pop("num_local_experts")
    if not values.get("use_sliding_window"):
        values.pop("layer_types", None)
    values["torch_dtype"] = values.pop("dtype", "float32")
    return values | {"transformers_version": "4.40.0", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
