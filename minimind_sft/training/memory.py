"""Estimates how much memory a run takes, before it starts: will it fit?

What a layer keeps for its backward pass is measured on the layer itself (saved_bytes.py). What the libraries take is
measured too (`LIBRARIES`, `HEAP`, `KERNEL`). Everything else is counted from the shapes. tests/test_memory.py compares
the total with processes that train; docs/memory.md has the figures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import DecoderLayer, MiniMindForCausalLM
from minimind_sft.model.kernels import cross_entropy
from minimind_sft.model.kernels.cross_entropy import rows_at_once
from minimind_sft.model.kernels.selection import SHORT, skips_unread_positions
from minimind_sft.model.lora_targets import HEAD, chosen_projections
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.training.adapting import attach, lora_shape
from minimind_sft.training.freezing import freeze, trained_parameters
from minimind_sft.training.saved_bytes import (
    ATTENTION,
    FEED_FORWARD,
    PROJECTIONS,
    READ,
    Layer,
    layer_config,
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
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per number in 4 bits: with one 8-bit scale per 64 of them, and one float32 for 256 scales."""
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
    freeze: tuple[str, ...] = ()
    lora: LoraSettings | None = None
    """The adapters of trainer/train_lora.py; None: there are none."""


@dataclass(frozen=True)
class Sizes:
    """Counts the parameters of a model, and which of its layers take part in the backward pass."""

    total: int
    trained: int
    held: int
    """Beside adapters: those of frozen matrices in the layers, which the run holds in autocast's dtype or in 4 bits."""
    converted: int
    """In one layer, those that autocast converts: trained matrices of projections, feed-forward networks, experts."""
    embedding: int
    """The embedding's matrix, V * D, or 0 if it is frozen."""
    head: int
    """The same for the head, tied or not."""
    adapts_head: bool
    """Whether the head has an adapter, and then computes all logits at once."""
    layers: tuple[Layer, ...]
    """All from the first that trains, or from below which a gradient is wanted."""

    @classmethod
    def of(cls, config: ModelConfig, plan: "Plan") -> "Sizes":
        """
        Raises:
            UserError: if `--freeze`, `--target_modules` or `--modules_to_save` has a pattern that names nothing.
        """
        return cls._of(config, plan.freeze, plan.lora)

    @classmethod
    @cache
    def _of(cls, config: ModelConfig, patterns: tuple[str, ...], lora: LoraSettings | None) -> "Sizes":
        with torch.device("meta"):
            model = MiniMindForCausalLM(config)
            adapted = chosen_projections(model, lora.targets) if lora else []
            if lora:
                attach(model, lora)
        freeze(model, patterns)
        layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        below = [child for name, child in model.model.named_children() if name.startswith("embed_")]
        reached = [any(parameter.requires_grad for module in (*below, *layers[: index + 1])
                       for parameter in module.parameters()) for index in range(len(layers))]
        embedding, head = (config.vocab_size * config.hidden_size * model.get_parameter(f"{name}.weight").requires_grad
                           for name in ("model.embed_tokens", "lm_head.base" if HEAD in adapted else HEAD))
        held = [sum(parameter.numel() for parameter in matrices_of(layer) if lora and not parameter.requires_grad)
                for layer in layers]
        return cls(
            total=sum(parameter.numel() for parameter in model.parameters()), trained=trained_parameters(model),
            held=sum(held), converted=sum(parameter.numel() for parameter in matrices_of(layers[0])) - held[0],
            embedding=embedding, head=head, adapts_head=HEAD in adapted,
            layers=tuple(_layer(config, index, layer, adapted, lora)
                         for index, layer in enumerate(layers) if reached[index]))


def matrices_of(layer: DecoderLayer) -> list[nn.Parameter]:
    """Returns the parameters of the matrices that are multiplied in autocast's dtype."""
    return [parameter for matrices in layer.matrices() for parameter in matrices.parameters()]


def _layer(config: ModelConfig, index: int, layer: DecoderLayer, adapted: list[str],
           lora: LoraSettings | None) -> Layer:
    prefix = f"model.layers.{index}."
    return Layer(
        layer_config(config, index),
        frozenset(name for name, parameter in layer.named_parameters() if not parameter.requires_grad),
        tuple(name.removeprefix(prefix) for name in adapted if name.startswith(prefix)),
        lora_shape(lora) if lora else None)


def kept_by_layer(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Returns the bytes per token that one layer's forward pass keeps for its backward pass, by part.

    If layers differ, it is the one that keeps most; nothing if no layer takes part in the backward pass.
    """
    return max((_kept(layer, plan) for layer in set(Sizes.of(config, plan).layers)), key=_total, default={})


def _total(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _kept(layer: Layer, plan: Plan) -> dict[str, float]:
    saved = saved_outside_attention(layer, plan.dtype)
    kept = {part: saved[part] for part in saved if part != READ and saved[part]}
    if plan.on_cpu:
        # Short and long documents are attended to in different ways. Any mix may come, so the worse one counts.
        attention = max(saved_by_attention(layer.config, plan.dtype, length)
                        for length in (plan.max_seq_len, min(plan.max_seq_len, SHORT)))
    else:
        attention = _saved_by_flash_attention(layer.config, plan.dtype)
    return {**kept, ATTENTION: kept.get(ATTENTION, 0.0) + attention}


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
    """Returns the bytes that one rank has in use at its peak, by purpose.

    The peak is in the loss, in the backward pass of the last layer, which comes first, or at the end of the backward
    pass, when all gradients exist.
    """
    sizes, tokens = Sizes.of(config, plan), plan.micro_batch_tokens
    kept = [sum(_kept(layer, plan).values()) * tokens for layer in sizes.layers]
    embedded, head = _embedded(config, plan), FLOAT * sizes.head
    if plan.gradient_checkpointing:
        activations = {"activations": FLOAT * config.hidden_size * tokens * len(kept) + embedded}
        again = {"recomputed layer": max(kept, default=0.0) + _copies(sizes, plan, 1)}
    else:
        unread = (tokens - _read(plan)) * sum(saved_outside_attention(last, plan.dtype)[READ]
                                              for last in sizes.layers[-1:])
        activations = {**_named_copies(sizes, plan), "activations": sum(kept) - unread + embedded}
        again = {}
    waits = head if config.tie_word_embeddings or not plan.several_micro_batches else 0.0
    moments: tuple[dict[str, float], ...] = (
        {**activations, "loss": _loss(config, plan)},
        {**activations, **again, "backward": _backward(config, plan) + waits},
        {"activations": embedded, **_last_gradients(config, plan)},
    )
    resident = _resident(sizes, plan)
    return max((resident | moment for moment in moments), key=_total)


def _resident(sizes: Sizes, plan: Plan) -> dict[str, float]:
    """Returns what stays in memory throughout a micro-batch."""
    shards = _shards(plan)
    gradients = FLOAT * sizes.trained if _gradients_wait(plan) else 0.0
    parts = {"weights": _weights(sizes, plan) / shards, "optimizer": 2 * FLOAT * sizes.trained / shards,
             "gradients": gradients}
    if shards > 1:
        # Two layers are gathered at a time (one computes, the next is fetched); embedding and head stay gathered.
        parts["gathered weights"] = 2 * plan.dtype.itemsize * sizes.converted + FLOAT * sizes.head
    elif plan.ranks > 1:
        parts["exchange"] = min(DDP_BUCKET, FLOAT * sizes.trained)
    return parts


def _weights(sizes: Sizes, plan: Plan) -> float:
    """Returns the bytes of all weights, on all ranks together."""
    bytes_held = NF4 if plan.lora and plan.lora.quantize == "nf4" else plan.dtype.itemsize
    return FLOAT * (sizes.total - sizes.held) + bytes_held * sizes.held


def _gradients_wait(plan: Plan) -> bool:
    """Says whether all gradients have their memory during the whole step, DDP's in its buckets."""
    return plan.several_micro_batches or (plan.ranks > 1 and _shards(plan) == 1)


def _copies(sizes: Sizes, plan: Plan, layers: int) -> float:
    """Returns the bytes of the matrices of some layers in autocast's dtype."""
    m = plan.dtype.itemsize
    return m * sizes.converted * layers if m < FLOAT and _shards(plan) == 1 else 0.0


def _named_copies(sizes: Sizes, plan: Plan) -> dict[str, float]:
    copies = _copies(sizes, plan, len(sizes.layers))
    return {f"weights in {str(plan.dtype).removeprefix('torch.')}": copies} if copies else {}


def _last_gradients(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Returns the gradients at the end of the backward pass.

    There the embedding's is computed, to be added to that of a tied head, and the sum to those of earlier
    micro-batches.
    """
    sizes, wait = Sizes.of(config, plan), _gradients_wait(plan)
    return {"gradients": FLOAT * sizes.trained / (1 if wait else _shards(plan)),
            "embedding's gradient": FLOAT * sizes.embedding * (config.tie_word_embeddings + wait)}


def _shards(plan: Plan) -> int:
    """Returns the number of ranks that share the weights and AdamW's moments."""
    return plan.ranks if plan.parallel == "fsdp" else 1


def _embedded(config: ModelConfig, plan: Plan) -> float:
    """Returns the bytes of the tokens' ids, labels, positions and indices, and of RoPE's cos and sin."""
    rope = FLOAT * config.head_dim if config.positions == "rope" else 0
    return plan.micro_batch_tokens * (7 * INDEX + rope)


def _loss(config: ModelConfig, plan: Plan) -> float:
    """Returns the peak inside the last norm and the loss (kernels/cross_entropy.py).

    There are hidden states and their gradient, one chunk of logits, and the head's gradient.
    """
    m, matrix = plan.dtype.itemsize, config.vocab_size * config.hidden_size
    supervised = plan.supervised_share * plan.micro_batch_tokens
    hidden = FLOAT * config.hidden_size * (2 * _read(plan) + 2 * supervised)
    chunk = min(cross_entropy.CHUNK, supervised) * config.vocab_size
    float32_logits = rows_at_once(config.vocab_size) * config.vocab_size if plan.on_cpu else chunk
    product = min(cross_entropy.BLOCK, config.vocab_size) * config.hidden_size
    gradients = FLOAT * Sizes.of(config, plan).head
    copy = m * matrix if m < FLOAT else 0
    if Sizes.of(config, plan).adapts_head:  # log-softmax, its gradient and that of the logits, for all at once
        return hidden + copy + 3 * FLOAT * supervised * config.vocab_size
    return hidden + gradients + copy + m * chunk + max(
        2 * FLOAT * float32_logits,  # a few rows and their log-softmax
        (FLOAT + m if m < FLOAT else m) * product)  # a block of the head's gradient by this chunk


def _backward(config: ModelConfig, plan: Plan) -> float:
    """Returns the bytes of the gradients inside one feed-forward network: residual stream, gate and up, one matrix."""
    m, D = plan.dtype.itemsize, config.hidden_size
    copies = config.num_experts_per_tok + config.num_shared_experts if config.use_moe else 1
    width = config.moe_intermediate_size if config.use_moe else config.intermediate_size
    inputs = 1 if config.mlp == "gelu" and not config.use_moe else 2
    per_token = (2 * FLOAT + m * copies) * D + inputs * m * copies * width
    return per_token * plan.micro_batch_tokens + (FLOAT + m) * D * width


def peak(config: ModelConfig, plan: Plan) -> dict[str, float]:
    """Returns the peak of one rank in bytes, by purpose: the whole process on a CPU, PyTorch's allocations on a GPU.

    On a CPU, the peak of a run with adapters may be before training, when the base has been read in float32. A GPU's
    context (a few hundred MiB) and its allocator's reserve come on top.

    Raises:
        UserError: if a pattern names nothing, see `Sizes.of`.
    """
    parts = in_use(config, plan)
    if plan.on_cpu:
        sizes = Sizes.of(config, plan)
        kept = kept_by_layer(config, replace(plan, freeze=()))  # a frozen layer computes with the same tensors
        held = HEAP * (kept[PROJECTIONS] + kept[FEED_FORWARD]) * plan.micro_batch_tokens
        kernels = kernels_of_one_length(config, plan) if plan.dtype != torch.float32 else 0.0
        parts |= {"held by the heap": held, "libraries": LIBRARIES + kernels}
        if plan.async_save:
            parts["state being written"] = FLOAT * (sizes.total + 2 * sizes.trained) / _shards(plan)
        if plan.lora and plan.lora.quantize == "none":  # layers in 4 bits are read one by one
            parts = max(parts, {"weights in float32": FLOAT * sizes.total, "libraries": LIBRARIES}, key=_total)
    return parts


def kernels_of_one_length(config: ModelConfig, plan: Plan) -> float:
    """Returns what oneDNN keeps for one number of tokens (CPU, bfloat16): three products for each shape of matrix.

    Every expert of every layer has its own number of tokens; shared experts have all of them. A frozen matrix has two
    products, and the two small ones of an adapter have three each; there are fewer shapes than adapters.
    """
    projections, head, feed_forward = 3, 1, 2
    if config.use_moe:
        feed_forward *= config.num_experts * config.num_hidden_layers + (config.num_shared_experts > 0)
    per_matrix = 6 if plan.lora else 3
    return per_matrix * (projections + head + feed_forward) * KERNEL


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
