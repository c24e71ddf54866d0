"""Settings of the model: its shape, and the weights to start from."""

from dataclasses import dataclass

from minimind_sft.model.config import PRESETS
from minimind_sft.settings.spec import setting


@dataclass(frozen=True)
class ModelSettings:
    """The weights to start from, or the shape of a new model, and what of it trains."""

    from_weight: str = setting(
        "none", "weights to start from: a NAME (reads <save_dir>/NAME_*.pth or .safetensors, then the repository's "
                "out/), the path of such a file, of a Hugging Face folder (./SmolLM2) or of a GGUF file, or none for a "
                "new model", kind="path")
    preset: str | None = setting(None, "shape of a new model, by name", choices=tuple(PRESETS))
    hidden_size: int | None = setting(
        None, "hidden size (default: that of --from_weight or --preset, else 512)", min=1, decides="shape")
    num_hidden_layers: int | None = setting(
        None, "number of layers (default: that of --from_weight or --preset, else 8)", min=1, decides="shape")
    use_moe: bool | None = setting(
        None, "mixture of experts (default: as --from_weight or --preset, else 0)", decides="shape")
    dropout: float = setting(
        0.0, "dropout on the attention weights and on what each block adds", min=0, below=1, decides="weights")
    freeze: tuple[str, ...] = setting(
        (), "parts of the model that stay as they are, by name: embed_tokens, lm_head, norm, layers.0-5, layers.*.mlp "
            "('*', '?' and '[...]' as in a shell, quoted; a range includes both ends)", decides="weights")
