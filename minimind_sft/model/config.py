"""The shape of a model, and presets by name."""

import math
from dataclasses import dataclass, field, fields
from typing import cast

from minimind_sft.errors import UserError

FOLLOWS = cast(int, None)
"""The default of a field that follows from other fields: None until `ModelConfig` has computed it."""


SINCE_0_2 = {"since": "0.2"}

MAX_FACTOR = 1_000_000
"""Of the numbers of RoPE's scaling, and the reciprocal of the least: far beyond any, and no formula overflows."""

ROPE_TYPES = ("linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """Other frequencies of RoPE, for contexts longer than that of the first training.

    Names are those of Hugging Face's `rope_parameters`; the defaults are MiniMind-3's YaRN.

    rope_type: "yarn" (Peng et al. 2023, arXiv:2309.00071), "linear" (Chen et al. 2023, arXiv:2306.15595), "dynamic"
        (NTK-aware, by the length of each document) or "llama3" (Grattafiori et al. 2024, arXiv:2407.21783).
    original_max_position_embeddings: the context of the first training. For "dynamic", transformers keeps it in
        `max_position_embeddings`; "linear" does not need it.
    beta_fast, beta_slow, attention_factor, truncate: yarn only. Without `truncate`, the bounds of its blend are not
        rounded to whole pairs.
    low_freq_factor, high_freq_factor: llama3 only.
    """

    rope_type: str = field(default="yarn", metadata=SINCE_0_2)
    factor: float = 16.0
    original_max_position_embeddings: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = field(default=True, metadata=SINCE_0_2)
    low_freq_factor: float = field(default=1.0, metadata=SINCE_0_2)
    high_freq_factor: float = field(default=4.0, metadata=SINCE_0_2)

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise UserError(f"rope_type is {self.rope_type!r}, expected {' or '.join(map(repr, ROPE_TYPES))}")
        for name in ("factor", "beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor"):
            if not 1 / MAX_FACTOR <= getattr(self, name) <= MAX_FACTOR:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number from {1 / MAX_FACTOR:g} to "
                                f"{MAX_FACTOR:,}")
        if self.rope_type == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(f"low_freq_factor is {self.low_freq_factor}, expected a number between 0 and "
                            f"high_freq_factor {self.high_freq_factor}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Names are those of Qwen3's and MiniMind-3's configurations.

    A family of models is a choice of values here, not a class of its own; the defaults are Qwen3's. families/ has the
    values for each.

    attention_bias: which projections of attention have a bias: "none", "qkv" (Qwen2) or "all" (GPT-2).
    mlp_bias: whether the feed-forward network's projections have one.
    qk_norm: whether each query and key head is normalised (RMSNorm).
    norm: "rms", or "layer" for LayerNorm with a bias. `rms_norm_eps` is the epsilon of either.
    mlp: "swiglu", or "gelu" for down(gelu(up x)) with GPT-2's tanh approximation.
    positions: "rope", or "learned": a trained vector per position, added to the token's embedding.
    sliding_window: how many tokens, itself included, a token reads at most; None: its whole past.
    full_attention_layers: layers that do without the sliding window.
    layers_without_rope: layers whose queries and keys are not rotated (SmolLM3).
    num_shared_experts: experts that every token passes through, besides the chosen ones (MiniMind-2).

    If `head_dim`, `intermediate_size` or `moe_intermediate_size` is None, it follows from the other fields as in
    MiniMind (hidden_size / heads; hidden_size * pi rounded up to a multiple of 64; intermediate_size).

    Raises:
        UserError: if the fields contradict one another.
    """

    vocab_size: int = 6400
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = FOLLOWS
    intermediate_size: int = FOLLOWS
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    dropout: float = 0.0
    use_moe: bool = False
    num_experts: int = 4
    num_experts_per_tok: int = 1
    moe_intermediate_size: int = FOLLOWS
    # MiniMind normalises the chosen experts' weights to sum to 1. With one expert per token that makes the weight a
    # constant and cuts the router off from the language-model loss, so it is off unless a checkpoint says otherwise.
    norm_topk_prob: bool = False
    router_aux_loss_coef: float = 5e-4
    # "document": per document, weighted by its tokens (DeepSeek-V3's sequence-wise loss), the same however a batch
    # is cut up. "batch": over all tokens of a micro-batch at once, as in MiniMind.
    aux_loss_scope: str = "document"
    attention_bias: str = field(default="none", metadata=SINCE_0_2)
    mlp_bias: bool = field(default=False, metadata=SINCE_0_2)
    qk_norm: bool = field(default=True, metadata=SINCE_0_2)
    norm: str = field(default="rms", metadata=SINCE_0_2)
    mlp: str = field(default="swiglu", metadata=SINCE_0_2)
    positions: str = field(default="rope", metadata=SINCE_0_2)
    sliding_window: int | None = field(default=None, metadata=SINCE_0_2)
    full_attention_layers: tuple[int, ...] = field(default=(), metadata=SINCE_0_2)
    layers_without_rope: tuple[int, ...] = field(default=(), metadata=SINCE_0_2)
    num_shared_experts: int = field(default=0, metadata=SINCE_0_2)

    def __post_init__(self) -> None:
        derived = {
            "head_dim": self.hidden_size // max(self.num_attention_heads, 1),
            "intermediate_size": math.ceil(self.hidden_size * math.pi / 64) * 64,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.moe_intermediate_size is None:
            object.__setattr__(self, "moe_intermediate_size", self.intermediate_size)
        problems = self._problems()
        if problems:
            raise UserError("model configuration: " + "; ".join(problems))

    @property
    def rope_follows_length(self) -> bool:
        """Whether the angles depend on the length of a document, and not on the position alone."""
        return self.positions == "rope" and self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic"

    @property
    def context(self) -> int:
        """The maximum number of tokens of a sequence; dynamic scaling is there to exceed that of the first training."""
        if not self.rope_follows_length:
            return self.max_position_embeddings
        scaling = cast(RopeScaling, self.rope_scaling)
        return max(self.max_position_embeddings, int(scaling.original_max_position_embeddings * scaling.factor))

    def _problems(self) -> list[str]:
        problems = []
        for one in fields(self):
            if one.type is int and getattr(self, one.name) < 1 and one.name != "num_shared_experts":
                problems.append(f"{one.name} is {getattr(self, one.name)}, expected at least 1")
        if problems:
            return problems
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                            f"num_key_value_heads {self.num_key_value_heads}")
        if (width := self.num_attention_heads * self.head_dim) > MAX_WIDTH:
            problems.append(f"num_attention_heads x head_dim is {width:,}, expected at most {MAX_WIDTH:,}")
        if self.head_dim % 2 and self.positions == "rope":
            problems.append(f"head_dim is {self.head_dim}, expected an even number (RoPE rotates pairs)")
        if self.rope_follows_length and self.head_dim < 4:
            problems.append(f"head_dim is {self.head_dim}, expected at least 4 (dynamic RoPE scaling)")
        if self.use_moe and (self.mlp != "swiglu" or self.mlp_bias):
            problems.append("use_moe is true: experts need mlp 'swiglu' and mlp_bias false")
        if self.num_experts_per_tok > self.num_experts:
            problems.append(f"num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}")
        if not self.rope_theta > 1:
            problems.append(f"rope_theta is {self.rope_theta}, expected more than 1")
        if not self.rms_norm_eps >= 0:
            problems.append(f"rms_norm_eps is {self.rms_norm_eps}, expected at least 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                problems.append(f"{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, allowed))}")
        if self.num_shared_experts < 0:
            problems.append(f"num_shared_experts is {self.num_shared_experts}, expected at least 0")
        if self.sliding_window is not None and self.sliding_window < 1:
            problems.append(f"sliding_window is {self.sliding_window}, expected at least 1")
        for name in ("full_attention_layers", "layers_without_rope"):
            if any(not 0 <= layer < self.num_hidden_layers for layer in getattr(self, name)):
                problems.append(f"{name} is {list(getattr(self, name))}, expected layers from 0 to "
                                f"{self.num_hidden_layers - 1}")
        return problems


MAX_WIDTH = 10**9
"""A wider matrix would have more values than PyTorch can count."""

CHOICES = {
    "aux_loss_scope": ("document", "batch"),
    "attention_bias": ("none", "qkv", "all"),
    "norm": ("rms", "layer"),
    "mlp": ("swiglu", "gelu"),
    "positions": ("rope", "learned"),
}
"""The values that a field may have."""

PRESETS = {
    "demo": ModelConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=512),
    "26m": ModelConfig(hidden_size=512, num_hidden_layers=8),
    "26m-moe": ModelConfig(hidden_size=512, num_hidden_layers=8, use_moe=True),
    "64m": ModelConfig(hidden_size=768, num_hidden_layers=8),
    "64m-moe": ModelConfig(hidden_size=768, num_hidden_layers=8, use_moe=True),
}
"""Models by name. The number is the size class: (active) parameters with MiniMind's vocabulary of 6,400."""
