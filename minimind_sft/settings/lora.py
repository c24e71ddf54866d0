"""Settings of adapters: what trainer/train_lora.py trains."""

from dataclasses import dataclass

from minimind_sft.settings.spec import setting

ALL_LINEAR = "all-linear"
QUANTIZATIONS = ("none", "nf4")
DEFAULT_RANK, DEFAULT_ALPHA = 16, 32.0
MAX_ALPHA = 10**6
"""Far beyond any that trains; much larger ones overflow."""


@dataclass(frozen=True)
class LoraSettings:
    """The adapter: its name, its size, and which projections it changes."""

    lora_name: str = setting(
        "adapter", "name of the adapter to write, as <save_dir>/lora_<lora_name>_<hidden_size>[_moe].safetensors",
        kind="name")
    from_lora: str | None = setting(
        None, "adapter to start from instead of a new one: a NAME or path, of this project, PEFT or MiniMind",
        kind="path")
    lora_rank: int | None = setting(
        None, f"rank of each change B A (default: {DEFAULT_RANK}, or that of --from_lora)", min=1)
    lora_alpha: float | None = setting(
        None, "strength of the change: it is multiplied by lora_alpha / lora_rank (default: "
              f"{DEFAULT_ALPHA:g}, or that of --from_lora)", above=0, max=MAX_ALPHA)
    lora_dropout: float = setting(
        0.0, "dropout on what the adapters read", min=0, below=1, decides="weights")
    use_rslora: bool = setting(
        False, "multiply by lora_alpha / sqrt(lora_rank) instead, for high ranks")
    target_modules: tuple[str, ...] = setting(
        (), "projections to change, by name or pattern: q_proj, layers.0-5.mlp, self_attn.[qv]_proj (default: "
            f"{ALL_LINEAR}, all of attention and feed-forward networks, or those of --from_lora)")
    modules_to_save: tuple[str, ...] = setting(
        (), "modules to train in full beside the adapters, and to write with them: embed_tokens, lm_head, norm")
    quantize: str = setting(
        "none", "keep the base's matrices in 4 bits (QLoRA; needs bitsandbytes): nf4", choices=QUANTIZATIONS)

    @property
    def rank(self) -> int:
        """The rank of new adapters."""
        return self.lora_rank or DEFAULT_RANK

    @property
    def alpha(self) -> float:
        """The alpha of new adapters."""
        return self.lora_alpha or DEFAULT_ALPHA

    @property
    def targets(self) -> tuple[str, ...]:
        """The patterns that name the projections with new adapters."""
        return self.target_modules or (ALL_LINEAR,)

    def problems(self) -> list[str]:
        if self.from_lora is None:
            return []
        given = ("lora_rank", "lora_alpha", "use_rslora", "target_modules", "modules_to_save")
        return [f"--{name}: not with --from_lora, whose adapter has its own" for name in given if getattr(self, name)]
