"""Asks the model what it saves for the backward pass: `saved_tensors_hooks` sees every tensor that autograd saves.

A layer of the same widths runs on a few tokens, on the CPU. What it saves is proportional to the tokens, so two runs of
different size tell what one token costs. Only attention also depends on the length of the documents; it runs by itself,
over documents of the length in question.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from math import ceil

import torch
from torch import Tensor, nn

from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.attention import Documents
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.kernels.padded_attention import MAX_PADDING
from minimind_sft.model.kernels.selection import SHORT
from minimind_sft.model.lora import LoraShape, add_adapters
from minimind_sft.training.adapting import hold_frozen_matrices

FEW = 64
"""Tokens of a document that the layer runs on; the head reads positions in multiples of this."""

PROJECTIONS, ATTENTION, FEED_FORWARD, DROPOUT = "norm and projections", "attention", "feed-forward", "dropout"
READ = "feed-forward of positions that the head reads"


@dataclass(frozen=True)
class Layer:
    """A layer whose input has a gradient; names are those of its parameters and projections within the layer."""

    config: ModelConfig
    """That of a model with this layer alone."""
    frozen: frozenset[str] = frozenset()
    """The parameters that do not train."""
    adapted: tuple[str, ...] = ()
    """The projections that have an adapter."""
    shape: LoraShape | None = None
    """That of the adapters, if there are any."""


class SavedBytes:
    """Counts the bytes that autograd saves inside `counting`, under the pass and part that run at that moment.

    Tensors that share memory count once.
    """

    def __init__(self) -> None:
        self.part = ("", "")
        self.by_part: Counter[tuple[str, str]] = Counter()
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def counting(self) -> AbstractContextManager:
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = storage
            self.by_part[self.part] += storage.nbytes()
        return tensor


def layer_config(config: ModelConfig, layer: int) -> ModelConfig:
    """Returns the configuration of a model of one layer, which is like layer number `layer` of another model."""
    return replace(config, num_hidden_layers=1, full_attention_layers=(),
                   sliding_window=None if layer in config.full_attention_layers else config.sliding_window,
                   layers_without_rope=(0,) if layer in config.layers_without_rope else ())


@cache
def saved_outside_attention(layer: Layer, dtype: torch.dtype) -> dict[str, float]:
    """Returns the bytes per token that a layer saves, by part; `ATTENTION` is what its output projection saves.

    `READ` is the share of the feed-forward network that the last layer saves only for positions that the head reads.
    """
    # Copies of weights in `dtype` are saved as well. They cancel out: all runs have the same.
    one, two = (_saved_by_model(layer, dtype, documents) for documents in (1, 2))
    unread = _saved_by_model(layer, dtype, 1, IGNORE_INDEX)
    saved = {part: (two["second", part] - one["second", part]) / FEW
             for part in (PROJECTIONS, ATTENTION, FEED_FORWARD, DROPOUT)}
    saved[PROJECTIONS] -= _saved_by_attention(layer.config, dtype, [FEW])
    saved[READ] = (one["last", FEED_FORWARD] - unread["last", FEED_FORWARD]) / FEW
    return saved


def _saved_by_model(layer: Layer, dtype: torch.dtype, documents: int, label: int = 0) -> Counter[tuple[str, str]]:
    """Runs a model of three layers, all of them the same one, and counts what each pass through it saves, by part.

    The first pass also counts what all layers share, such as RoPE's angles.
    """
    model = _zero_model(layer, dtype)
    module = model.model.layers[0]
    assert isinstance(module, DecoderLayer)
    model.model.layers = nn.ModuleList([module] * 3)

    saved, passes = SavedBytes(), iter(("first", "second", "last"))

    def enter(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            saved.part = (next(passes) if part == PROJECTIONS else saved.part[0], part)
        return hook

    for child, part in ((module, PROJECTIONS), (module.self_attn.o_proj, ATTENTION), (module.dropout, DROPOUT),
                        (module.post_attention_layernorm, FEED_FORWARD), (model.model.norm, "head")):
        child.register_forward_pre_hook(enter(part))
    ids = torch.zeros(documents * FEW, dtype=torch.int64)
    with saved.counting(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = model(ids, torch.full_like(ids, label), range(0, len(ids) + 1, FEW))
    assert losses.loss_sum.requires_grad
    return saved.by_part


def _zero_model(layer: Layer, dtype: torch.dtype) -> MiniMindForCausalLM:
    """Returns a model of this layer alone; drawing its weights would take time, and their values do not matter."""
    config = replace(layer.config, vocab_size=1, max_position_embeddings=max(layer.config.max_position_embeddings, FEW))
    with torch.device("meta"):
        model = MiniMindForCausalLM(config)
        if layer.shape:
            add_adapters(model, [f"model.layers.0.{name}" for name in layer.adapted], layer.shape)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.zero_()
    model.requires_grad_(True)
    for name in layer.frozen:
        model.model.layers[0].get_parameter(name).requires_grad_(False)
    if layer.shape:
        hold_frozen_matrices(model, dtype)
    return model


@cache
def saved_by_attention(config: ModelConfig, dtype: torch.dtype, length: int) -> float:
    """Returns the bytes per token that attention saves in documents of up to `length` tokens with the most padding.

    Beyond `SHORT` a token costs the same at any length, or, with dropout, in proportion to the length. Two lengths
    tell the rest.
    """
    near, far = SHORT + FEW, SHORT + 2 * FEW
    if length > far:
        at_near, at_far = (saved_by_attention(config, dtype, each) for each in (near, far))
        return at_far + (at_far - at_near) / (far - near) * (length - far)
    shortest_beside_it = ceil((1 - 2 * MAX_PADDING) * length)
    return _saved_by_attention(config, dtype, [shortest_beside_it, length])


def _saved_by_attention(config: ModelConfig, dtype: torch.dtype, lengths: Sequence[int]) -> float:
    """Counts bytes per token in documents of these lengths, without the indices that all layers share."""
    tokens = sum(lengths)
    context = Documents((0, *accumulate(lengths)), torch.device("cpu"), config.dropout)
    q_THK = torch.zeros(tokens, config.num_attention_heads, config.head_dim, requires_grad=True)
    k_TGK = torch.zeros(tokens, config.num_key_value_heads, config.head_dim, requires_grad=True)
    v_TGK = k_TGK.detach().to(dtype).requires_grad_()
    saved = SavedBytes()
    with saved.counting():
        for saved.part in (("first", ATTENTION), ("second", ATTENTION)):
            context.attend(0, q_THK, k_TGK, v_TGK, layer_config(config, 0).sliding_window)
    return saved.by_part["second", ATTENTION] / tokens
