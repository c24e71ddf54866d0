"""Identifies a run: equal on all ranks and on resume."""

import hashlib
from dataclasses import asdict, replace
from typing import Any

import torch

from minimind_sft.data.dataset import Samples
from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.paths import shown
from minimind_sft.settings.spec import as_typed, flags_of, recorded
from minimind_sft.settings.training import SFTSettings, TrainSettings
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.resume_state import TrainState, load_tensors
from minimind_sft.training.run import Run

CHANGEABLE = tuple(recorded(SFTSettings, "samples"))
"""Keys of `run_identity` that `--allow_changed_data 1` lets a resumed run change: all that decides the samples."""


def run_identity(run: Run, model: MiniMindForCausalLM, train_set: Samples, eval_set: Samples | None) -> dict[str, Any]:
    """Collects what a resumed run must have in common with the one it goes on from."""
    settings = run.settings
    shape = asdict(replace(model.config, dropout=0.0))
    identity = {
        **{f"model.{name}": value for name, value in shape.items()},
        "chat_template": None,
        **{name: value for name, value in run.rows.settings.items() if name != "rows"},
        "data": train_set.fingerprint,
        "eval_data": eval_set.fingerprint if settings.data.eval_data_path else None,
    }
    return identity | {name: value for name, value in recorded(settings, "samples").items() if name not in identity}


def check_agreement(run: Run, model: MiniMindForCausalLM, identity: dict[str, Any]) -> None:
    """Compares what the ranks are about to train, before the first of them does.

    Raises:
        UserError: on the rank whose data, starting weights or settings are not the main one's; paths may differ.
    """
    if run.ranks.world_size == 1:
        return
    mine = {**identity, **common_settings(run.settings), "from_weight": sha256_of_parameters(model)}
    main = run.ranks.on_main(lambda: mine)

    def compare() -> None:
        for name, value in mine.items():
            if value != main[name]:
                raise UserError(f"{name} is {value} on rank {run.ranks.rank}, but {main[name]} on the main rank: all "
                                "ranks must train the same")

    run.ranks.on_each(compare)


def common_settings(settings: TrainSettings) -> dict[str, Any]:
    """Returns the settings that all ranks must share: all but paths, whose files are compared by content, and what
    depends on a rank's machine."""
    return {flag.name: value for flag, value in zip(flags_of(settings), as_typed(settings).values(), strict=True)
            if flag.setting.kind != "path" and flag.setting.decides != "machine"}


def sha256_of_parameters(model: MiniMindForCausalLM) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def run_settings(run: Run) -> dict[str, Any]:
    """Collects the other settings that decide what is learned; a resumed run may change them, and says so."""
    return {**recorded(run.settings, "weights"), "dtype": str(run.dtype).removeprefix("torch.")}


def resume(run: Run, checkpoints: Checkpoints, fresh: TrainState, model: MiniMindForCausalLM,
            optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> TrainState:
    """Loads the newest state and returns it, with its settings as they were; returns `fresh` where there is none.

    Raises:
        UserError: if none of the states can be used, or the newest usable one belongs to another run.
    """
    path, state, refused = checkpoints.newest()
    for line in refused:
        run.say(f"passed over {line}")
    if path is None and refused:
        raise UserError(f"--from_resume 1: none of the resume states in {checkpoints.folder} can be used (the newest: "
                        f"{refused[0]}); --overwrite without --from_resume 1 sets them aside and starts anew")
    if path is None:
        aside = f" ({shown(checkpoints.previous)} has those of the run before)" * checkpoints.previous.exists()
        run.say(f"resume      no resume state in {shown(checkpoints.folder)}{aside}; starting from the beginning")
        return fresh
    for name, now in fresh.identity.items():
        was = state.identity.get(name)
        if was == now:
            continue
        if not (run.settings.saving.allow_changed_data and name in CHANGEABLE):
            hint = "; --allow_changed_data 1 goes on all the same" if name in CHANGEABLE else ""
            raise UserError(f"--from_resume 1: {name} was {was} in {path}, now it is {now}{hint}")
        run.say(f"resume      {name} was {was}, now it is {now} (--allow_changed_data 1)")
        state.best_eval_loss = None  # measured on what may be other samples
    for name, now in fresh.settings.items():
        if state.settings[name] != now:
            run.say(f"resume      --{name} was {state.settings[name]}, now it is {now}")
    if state.samples_per_step != fresh.samples_per_step:
        run.say(f"resume      the run has {state.samples_per_step} samples per step and keeps them "
                f"(the flags say {fresh.samples_per_step})")
    load_tensors(path, model, optimizer, scaler, run.ranks)
    run.say(f"resume      {shown(path)}")
    return replace(state, identity=fresh.identity)
