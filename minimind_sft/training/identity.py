"""Identifies a run: what must be equal on all ranks and on resume."""

import hashlib
from dataclasses import asdict, fields, replace
from typing import Any

import torch

from minimind_sft.data.dataset import Samples
from minimind_sft.data.samples import RowEncoder
from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.spec import as_typed, flags_of, recorded
from minimind_sft.settings.training import SFTSettings, TrainSettings
from minimind_sft.training.distributed import Ranks

CHANGEABLE = tuple(recorded(SFTSettings, "samples"))
"""Keys of `run_identity` that `--allow_changed_data 1` lets a resumed run change: all that decides the samples."""

IMPLIED = {**{f"model.{one.name}": list(one.default) if isinstance(one.default, tuple) else one.default
              for one in fields(ModelConfig)},
           **recorded(SFTSettings, "samples"), **recorded(SFTSettings, "weights")}
"""Values of keys that a resume state lacks because a later version added them: the defaults."""

ANSWERS = ("eval_samples", "eval_max_new_tokens")


def run_identity(settings: TrainSettings, encoder: RowEncoder, model: ModelConfig, train_set: Samples,
                 eval_set: Samples | None) -> dict[str, Any]:
    """Collects what a resumed run must have in common with the one it continues."""
    identity = {
        **{f"model.{name}": list(value) if isinstance(value, tuple) else value  # as JSON gives it back
           for name, value in asdict(replace(model, dropout=0.0)).items()},
        "chat_template": None,
        **{name: value for name, value in encoder.settings.items() if name != "rows"},
        "data": train_set.fingerprint,
        "eval_data": eval_set.fingerprint if eval_set is not None and settings.data.eval_data_path else None,
    }
    return identity | {name: value for name, value in recorded(settings, "samples").items() if name not in identity}


def run_settings(settings: TrainSettings, dtype: torch.dtype) -> dict[str, Any]:
    """Collects the other settings that decide what is learned; a resumed run may change them, and says so.

    Those of the answers decide which weights are the best only if these are chosen by answers.
    """
    evaluation = settings.evaluation
    answers = {name: getattr(evaluation, name) for name in ANSWERS} if evaluation.best_by == "exact_match" else {}
    return {**recorded(settings, "weights"), **answers, "dtype": str(dtype).removeprefix("torch.")}


def check_agreement(identity: dict[str, Any], settings: TrainSettings, model: MiniMindForCausalLM,
                    ranks: Ranks) -> None:
    """Compares what the ranks are about to train, before the model is spread over them.

    Raises:
        UserError: on a rank whose data, starting weights or settings differ from the main one's; paths may differ.
    """
    if ranks.world_size == 1:
        return
    mine = {**identity, **common_settings(settings), "from_weight": sha256_of_parameters(model)}
    main = ranks.on_main(lambda: mine)

    def compare() -> None:
        for name, value in mine.items():
            if value != main[name]:
                raise UserError(f"{name} is {value} on rank {ranks.rank}, but {main[name]} on the main rank: all "
                                "ranks must train the same")

    ranks.on_each(compare)


def common_settings(settings: TrainSettings) -> dict[str, Any]:
    """Returns the settings that all ranks must share: all but paths, whose files are compared by content, and what
    depends on a rank's machine."""
    return {flag.name: value for flag, value in zip(flags_of(settings), as_typed(settings).values(), strict=True)
            if flag.setting.kind != "path" and flag.setting.decides != "machine"}


def sha256_of_parameters(model: MiniMindForCausalLM) -> str:
    """Returns the SHA-256 of all parameters' bytes, in hex."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()
