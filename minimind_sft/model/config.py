"""The shape of a model, and presets by name."""

import math
from dataclasses import dataclass, fields
from typing import cast

from minimind_sft.errors import UserError

FOLLOWS = cast(int, None)
"""The default of a field that follows from other fields: None until `ModelConfig` has computed it."""


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): RoPE frequencies interpolated for contexts longer than trained on.

    The defaults are MiniMind-3's.
    """

    factor: float = 16.0
    original_max_position_embeddings: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Names are those of Qwen3's and MiniMind-3's configurations.

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
    rope_scaling: YarnScaling | None = None
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

    def _problems(self) -> list[str]:
        problems = []
        for one in fields(self):
            if one.type is int and getattr(self, one.name) < 1:
                problems.append(f"{one.name} is {getattr(self, one.name)}, expected at least 1")
        if problems:
            return problems
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                            f"num_key_value_heads {self.num_key_value_heads}")
        if self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}, expected an even number (RoPE rotates pairs)")
        if self.num_experts_per_tok > self.num_experts:
            problems.append(f"num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}")
        if not self.rope_theta > 1:
            problems.append(f"rope_theta is {self.rope_theta}, expected more than 1")
        if not self.rms_norm_eps >= 0:
            problems.append(f"rms_norm_eps is {self.rms_norm_eps}, expected at least 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.aux_loss_scope not in ("document", "batch"):
            problems.append(f"aux_loss_scope is {self.aux_loss_scope!r}, expected 'document' or 'batch'")
        return problems


PRESETS = {
    "demo": ModelConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                        intermediate_size=512),
    "26m": ModelConfig(hidden_size=512, num_hidden_layers=8),
    "26m-moe": ModelConfig(hidden_size=512, num_hidden_layers=8, use_moe=True),
    "64m": ModelConfig(hidden_size=768, num_hidden_layers=8),
    "64m-moe": ModelConfig(hidden_size=768, num_hidden_layers=8, use_moe=True),
}
"""Models by name. The number is the size class: (active) parameters with MiniMind's vocabulary of 6,400."""
