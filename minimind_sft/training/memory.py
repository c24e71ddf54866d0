"""Estimates how much memory a run takes, before it starts: will it fit?

What a layer keeps for its backward pass is measured on the layer itself (saved_bytes.py). What the libraries take is
measured too (`LIBRARIES`, `HEAP`, `KERNEL`). Everything else is counted from the shapes. tests/test_memory.py compares
the total with processes that train; docs/memory.md has the figures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.kernels import cross_entropy
from minimind_sft.model.kernels.selection import SHORT, skips_unread_positions
from minimind_sft.training.saved_bytes import (
    ATTENTION,
    FEED_FORWARD,
    PROJECTIONS,
    READ,
    saved_by_attention,
    saved_outside_attention,
)

MIB, GIB = 2**20, 2**30
FLOAT = 4
INDEX = 8

LIBRARIES = 375 * MIB
"""CPU: the interpreter and PyTorch (271 MiB after the imports), and what its kernels allocate when they first run."""
HEAP = 3
"""CPU: what glibc's heap holds back between blocks in use, in multiples of what a layer keeps outside attention.

It is as much with gradient checkpointing, because the same tensors come and go while one layer computes.
"""
MULTIPLE = 64
"""Micro-batches are tried in multiples of this many tokens."""

KERNEL = 0.65 * MIB
"""CPU, bfloat16: what oneDNN keeps for every new shape of a matrix product."""
DDP_BUCKET = 25 * MIB


@dataclass(frozen=True)
class Plan:
    """A run, apart from its model."""

    micro_batch_tokens: int
    max_seq_len: int
    dtype: torch.dtype
    on_cpu: bool = True
    gradient_checkpointing: bool = False
    several_micro_batches: bool = True
    """Whether a step has more than one: then gradients stay in memory while the next one is computed."""
    supervised_share: float = 1.0
    ranks: int = 1
    parallel: str = "ddp"
    async_save: bool = False


@dataclass(frozen=True)
class Sizes:
    """Counts the parameters of a model."""

    total: int
    layer_matrices: int
    """In all layers, those that autocast converts: projections, feed-forward networks, experts."""
    head: int
    """The head's matrix, V * D (tied or not)."""
    layers: int

    @classmethod
    @cache
    def of(cls, config: ModelConfig) -> "Sizes":
        with torch.device("meta"):
            model = MiniMindForCausalLM(config)
        layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        matrices = sum(parameter.numel() for layer in layers for module in layer.matrices()
                       for parameter in module.parameters())
        return cls(sum(parameter.numel() for parameter in model.parameters()), matrices,
                   config.vocab_size * config.hidden_size, config.num_hidden_layers)


def kept_by_layer(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Returns the bytes per token that one layer's forward pass keeps for its backward pass, by part."""
    saved = saved_outside_attention(config, plan.dtype)
    kept = {part: saved[part] for part in saved if part != READ and saved[part]}
    if plan.on_cpu:
        # Short and long documents are attended to in different ways. Any mix may come, so the worse one counts.
        kept[ATTENTION] += max(saved_by_attention(config, plan.dtype, length)
                               for length in (plan.max_seq_len, min(plan.max_seq_len, SHORT)))
    else:
        kept[ATTENTION] += _saved_by_flash_attention(config, plan.dtype)
    return kept


def _saved_by_flash_attention(config: ModelConfig, dtype: torch.dtype) -> float:
    """Returns the bytes per token on a GPU: queries, keys, values, the output, and a sum per query head.

    This is a formula, because a machine without a GPU cannot run a GPU's attention.
    """
    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return dtype.itemsize * 2 * (query_heads + kv_heads) * config.head_dim + FLOAT * query_heads


def _read(plan: Plan) -> float:
    """Returns how many tokens pass through the last layer's feed-forward network."""
    skips = skips_unread_positions(torch.device("cpu" if plan.on_cpu else "cuda"))
    return plan.micro_batch_tokens * (plan.supervised_share if skips else 1.0)


def in_use(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Returns the bytes that one rank has in use at its peak, by purpose."""
    sizes, tokens = Sizes.of(config), plan.micro_batch_tokens
    layer = sum(kept_by_layer(config, plan).values()) * tokens
    entry = FLOAT * config.hidden_size * tokens
    unread = (tokens - _read(plan)) * saved_outside_attention(config, plan.dtype)[READ]  # in the last layer
    activations = sizes.layers * entry if plan.gradient_checkpointing else sizes.layers * layer - unread
    again = layer if plan.gradient_checkpointing else 0.0
    resident = _resident(sizes, plan)
    # The peak is either in the loss or in the backward pass of the last layer, which comes first.
    in_loss = {"loss": _loss(config, plan)}
    in_backward = {"recomputed layer": again, "backward": _backward(config, plan)}
    highest = max(in_loss, in_backward, key=lambda parts: sum(parts.values()))
    return {**resident, "activations": activations + _embedded(config, plan), **highest}


def _resident(sizes: Sizes, plan: Plan) -> dict[str, float]:
    """Returns what stays in memory throughout a micro-batch."""
    m = plan.dtype.itemsize
    shards = _shards(plan)
    gradients = FLOAT * sizes.total * (plan.several_micro_batches or (plan.ranks > 1 and shards == 1))
    parts = {"weights": FLOAT * sizes.total / shards, "optimizer": 2 * FLOAT * sizes.total / shards,
             "gradients": gradients}
    if shards > 1:
        # Two layers are gathered at a time (one computes, the next is fetched); embedding and head stay gathered.
        parts["gathered weights"] = 2 * m * sizes.layer_matrices / sizes.layers + FLOAT * sizes.head
        return parts
    if plan.ranks > 1:
        parts["exchange"] = min(DDP_BUCKET, FLOAT * sizes.total)
    if m < FLOAT:
        parts["weights in " + str(plan.dtype).removeprefix("torch.")] = m * sizes.layer_matrices
    return parts


def _shards(plan: Plan) -> int:
    """Returns the number of ranks that share the weights and AdamW's moments."""
    return plan.ranks if plan.parallel == "fsdp" else 1


def _embedded(config: ModelConfig, plan: Plan) -> float:
    """Returns the bytes of the tokens' ids, labels, positions and indices, and of RoPE's cos and sin."""
    return plan.micro_batch_tokens * (7 * INDEX + FLOAT * config.head_dim)


def _loss(config: ModelConfig, plan: Plan) -> float:
    """Returns the peak inside the last norm and the loss (kernels/cross_entropy.py).

    There are hidden states and their gradient, one chunk of logits, and the head's gradient.
    """
    m, head = plan.dtype.itemsize, config.vocab_size * config.hidden_size
    supervised = plan.supervised_share * plan.micro_batch_tokens
    hidden = FLOAT * config.hidden_size * (2 * _read(plan) + 2 * supervised)
    chunk = min(cross_entropy.CHUNK, supervised) * config.vocab_size
    float32_logits = cross_entropy.ROWS * config.vocab_size if plan.on_cpu else chunk
    logits = m * chunk + 2 * FLOAT * float32_logits  # and their log-softmax
    products = m * chunk + (FLOAT + m if m < FLOAT else m) * head  # the logits' gradient, and the head's by this chunk
    head_in_use = (FLOAT + (m if m < FLOAT else 0)) * head  # its gradient, its copy for the product
    return hidden + head_in_use + max(logits, products)


def _backward(config: ModelConfig, plan: Plan) -> float:
    """Returns the bytes of the gradients inside one feed-forward network: residual stream, gate and up, one matrix."""
    m, D = plan.dtype.itemsize, config.hidden_size
    copies = config.num_experts_per_tok if config.use_moe else 1
    width = config.moe_intermediate_size if config.use_moe else config.intermediate_size
    per_token = (2 * FLOAT + m * copies) * D + 2 * m * copies * width
    return per_token * plan.micro_batch_tokens + (FLOAT + m) * D * width


def peak(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Returns the peak of one rank in bytes, by purpose: the whole process on a CPU, PyTorch's allocations on a GPU.

    A GPU's context (a few hundred MiB) and its allocator's reserve come on top.
    """
    parts = in_use(config, plan)
    if plan.on_cpu:
        kept = kept_by_layer(config, plan)
        held = HEAP * (kept[PROJECTIONS] + kept[FEED_FORWARD]) * plan.micro_batch_tokens
        kernels = kernels_of_one_length(config) if plan.dtype != torch.float32 else 0.0
        parts |= {"held by the heap": held, "libraries": LIBRARIES + kernels}
        if plan.async_save:
            parts["state being written"] = 3 * FLOAT * Sizes.of(config).total / _shards(plan)
    return parts


def kernels_of_one_length(config: ModelConfig) -> float:
    """Returns what oneDNN keeps for one number of tokens (CPU, bfloat16): three products for each shape of matrix.

    Every expert of every layer has its own number of tokens.
    """
    projections, head, feed_forward = 3, 1, 2
    if config.use_moe:
        feed_forward *= config.num_experts * config.num_hidden_layers
    return 3 * (projections + head + feed_forward) * KERNEL


def largest_micro_batch(config: ModelConfig, plan: Plan, budget: float) -> int:
    """Returns the largest `micro_batch_tokens`, a multiple of 64, whose `peak` fits into `budget` bytes, or 0."""
    return _largest(lambda tokens: sum(peak(config, replace(plan, micro_batch_tokens=tokens)).values()) <= budget)


def _largest(fits: Callable[[int], bool]) -> int:
    """Returns the largest multiple of `MULTIPLE` that `fits`, by bisection, or 0."""
    low, high = 0, 1
    while fits(high * MULTIPLE) and high < 2**24:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * MULTIPLE) else (low, middle)
    return low * MULTIPLE
