"""Estimates how much memory a run takes, before it starts: will it fit?

What a layer keeps for its backward pass is measured on the layer itself (saved_bytes.py). What the libraries take is
measured too (`LIBRARIES`, `HEAP`, `KERNEL`). Everything else is counted from the shapes. tests/test_memory.py compares
the total with processes that train; docs/memory.md has the figures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minimind_sft.model import loss
from minimind_sft.model.attention import SHORT
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
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
"""CPU: the interpreter and PyTorch (271 MiB after the imports), and what its kernels set up when they first run."""
HEAP = 3
"""CPU: what glibc's heap holds back between blocks in use, in layers' worth of what is kept outside attention.

With gradient checkpointing it is as much: what comes and goes while one layer computes breaks the heap into pieces.
"""
KERNEL = 0.65 * MIB
"""CPU, bfloat16: what oneDNN keeps for every shape of a matrix product that it has met."""
DDP_BUCKET = 25 * MIB


@dataclass(frozen=True)
class Plan:
    """The training that is asked about, besides its model."""

    micro_batch_tokens: int
    max_seq_len: int
    dtype: torch.dtype
    on_cpu: bool = True
    gradient_checkpointing: bool = False
    several_micro_batches: bool = True
    """Whether a step has more than one, so that gradients of the first wait while the next is computed."""
    supervised_share: float = 1.0
    ranks: int = 1
    parallel: str = "ddp"
    async_save: bool = False


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model, by what becomes of them."""

    total: int
    layer_matrices: int
    """Those of all layers that autocast converts: projections, feed-forward networks, experts."""
    head: int
    """The head's matrix, V * D (tied or not)."""
    layers: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Sizes":
        with torch.device("meta"):
            model = MiniMindForCausalLM(config)
        matrices = sum(parameter.numel() for layer in model.model.layers for module in layer.matrices()
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
    """Bytes per token on a GPU: queries, keys, values, the output, and a sum per query head.

    A formula, and the only one about a layer, because a machine without a GPU cannot run a GPU's attention.
    """
    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return dtype.itemsize * 2 * (query_heads + kv_heads) * config.head_dim + FLOAT * query_heads


def _read(plan: Plan) -> float:
    """Tokens of a micro-batch for which the last layer computes its feed-forward network (model/decoder.py)."""
    return plan.micro_batch_tokens * (plan.supervised_share if plan.on_cpu else 1.0)


def in_use(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Bytes on one rank at the instant when most are in use, by what they are."""
    sizes, tokens = Sizes.of(config), plan.micro_batch_tokens
    layer = sum(kept_by_layer(config, plan).values()) * tokens
    entry = FLOAT * config.hidden_size * tokens
    unread = (tokens - _read(plan)) * saved_outside_attention(config, plan.dtype)[READ]  # in the last layer
    activations = sizes.layers * entry if plan.gradient_checkpointing else sizes.layers * layer - unread
    again = layer if plan.gradient_checkpointing else 0.0
    resident = _resident(sizes, plan)
    # Either the loss is the highest point, or the first layer whose backward pass runs, which is the last one.
    peaks = ({"loss": _loss(config, plan)}, {"recomputed layer": again, "backward": _backward(config, plan)})
    return {**resident, "activations": activations + _embedded(config, plan),
            **max(peaks, key=lambda peak: sum(peak.values()))}


def _resident(sizes: Sizes, plan: Plan) -> dict[str, float]:
    """What is there through all of a micro-batch."""
    m = plan.dtype.itemsize
    shards = _shards(plan)
    gradients = FLOAT * sizes.total * (plan.several_micro_batches or (plan.ranks > 1 and shards == 1))
    parts = {"weights": FLOAT * sizes.total / shards, "optimizer": 2 * FLOAT * sizes.total / shards,
             "gradients": gradients}
    if shards > 1:
        # Two layers are whole at a time (one computes, the next is fetched); embedding and head all the time.
        parts["gathered weights"] = 2 * m * sizes.layer_matrices / sizes.layers + FLOAT * sizes.head
        return parts
    if plan.ranks > 1:
        parts["exchange"] = min(DDP_BUCKET, FLOAT * sizes.total)
    if m < FLOAT:
        parts["weights in " + str(plan.dtype).removeprefix("torch.")] = m * sizes.layer_matrices
    return parts


def _shards(plan: Plan) -> int:
    """Into how many parts the weights and AdamW's moments are divided."""
    return plan.ranks if plan.parallel == "fsdp" else 1


def _embedded(config: ModelConfig, plan: Plan) -> float:
    """Ids, labels, positions and places of the tokens, cos and sin of their angles."""
    return plan.micro_batch_tokens * (7 * INDEX + FLOAT * config.head_dim)


def _loss(config: ModelConfig, plan: Plan) -> float:
    """The last norm and the head: hidden states, their gradient, one chunk of logits, the head's gradient."""
    m, head = plan.dtype.itemsize, config.vocab_size * config.hidden_size
    supervised = plan.supervised_share * plan.micro_batch_tokens
    hidden = FLOAT * config.hidden_size * (2 * _read(plan) + 2 * supervised)
    chunk = min(loss.CHUNK, supervised) * config.vocab_size
    logits = m * chunk + 2 * FLOAT * (loss.ROWS * config.vocab_size if plan.on_cpu else chunk)  # float32, log-softmax
    products = m * chunk + (FLOAT + m if m < FLOAT else m) * head  # the logits' gradient, and the head's by this chunk
    head_in_use = (FLOAT + (m if m < FLOAT else 0)) * head  # its gradient, its copy for the product
    return hidden + head_in_use + max(logits, products)


def _backward(config: ModelConfig, plan: Plan) -> float:
    """Gradients on their way through one feed-forward network: of the residual stream, of gate and up, of a matrix."""
    m, D = plan.dtype.itemsize, config.hidden_size
    copies = config.num_experts_per_tok if config.use_moe else 1
    width = config.moe_intermediate_size if config.use_moe else config.intermediate_size
    per_token = (2 * FLOAT + m * copies) * D + 2 * m * copies * width
    return per_token * plan.micro_batch_tokens + (FLOAT + m) * D * width


def peak(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Bytes that one rank takes at its highest, by what they are: of the process on a CPU, allocated on a GPU.

    A GPU's context (some hundred MiB) and what its allocator keeps in reserve come on top.
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
    """What oneDNN keeps for one number of tokens (CPU, bfloat16): three products for each shape of matrix.

    Experts each have another number of tokens, in every layer.
    """
    projections, head, feed_forward = 3, 1, 2
    if config.use_moe:
        feed_forward *= config.num_experts * config.num_hidden_layers
    return 3 * (projections + head + feed_forward) * KERNEL


def most_tokens(config: ModelConfig, plan: Plan, budget: float) -> int:
    """The largest `micro_batch_tokens`, a multiple of 64, whose `peak` is at most `budget` bytes; 0 if none is."""
    return _largest(lambda tokens: sum(peak(config, replace(plan, micro_batch_tokens=tokens)).values()) <= budget)


def _largest(fits: Callable[[int], bool], unit: int = 64) -> int:
    """The largest multiple of `unit` that `fits`, by bisection; 0 if none."""
    low, high = 0, 1
    while fits(high * unit) and high < 2**24:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit
