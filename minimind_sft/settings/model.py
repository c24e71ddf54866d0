"""Settings of the model: its shape, and the weights to start from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.model.config import PRESETS, ModelConfig
from minimind_sft.settings.spec import names_of, setting


@dataclass(frozen=True)
class ModelSettings:
    """The weights to start from, or the shape of a new model."""

    from_weight: str = setting(
        "none", "weights to start from: a NAME (reads <save_dir>/NAME_*.pth or .safetensors, then the repository's "
                "out/), a path, or none for a new model", kind="path")
    preset: str | None = setting(None, "shape of a new model, by name", choices=tuple(PRESETS))
    hidden_size: int | None = setting(
        None, "hidden size (default: that of --from_weight or --preset, else 512)", min=1, decides="shape")
    num_hidden_layers: int | None = setting(
        None, "number of layers (default: that of --from_weight or --preset, else 8)", min=1, decides="shape")
    use_moe: bool | None = setting(
        None, "mixture of experts (default: as --from_weight or --preset, else 0)", decides="shape")
    dropout: float = setting(
        0.0, "dropout on the attention weights and on what each block adds", min=0, below=1, decides="weights")


def given_shape(settings: Any) -> dict[str, Any]:
    """Returns the part of a model's shape that the flags name, by the fields of `ModelConfig`."""
    return {name: value for name in names_of(settings, "shape") if (value := getattr(settings, name)) is not None}


def check_shape(settings: Any, model: ModelConfig, path: Path) -> None:
    """
    Raises:
        UserError: if a flag names another shape than the weights at `path` have.
    """
    for name, value in given_shape(settings).items():
        has = getattr(model, name)
        if value != has:
            raise UserError(f"--{name} is {int(value)}, but {path} has {name} {int(has)}")
