"""Continues a run from its newest resume state."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.paths import shown
from minimind_sft.settings.evaluation import EvaluationSettings
from minimind_sft.settings.spec import flags_of
from minimind_sft.settings.training import SFTSettings
from minimind_sft.terminal import counted
from minimind_sft.training.best import has_stalled
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.identity import ANSWERS, CHANGEABLE, IMPLIED
from minimind_sft.training.learner import Learner
from minimind_sft.training.resume_state import TrainState, load_tensors

MAX_SHOWN = 200
FLAG_OF = {flag.setting.recorded_as: flag.name for flag in flags_of(SFTSettings) if flag.setting.recorded_as}
"""The flags behind the keys of resume states that are named otherwise."""


def resume(checkpoints: Checkpoints, fresh: TrainState, learner: Learner, *, allow_changed_data: bool) -> TrainState:
    """Loads the newest resume state into the learner and returns its counters; returns `fresh` if there is none.

    Args:
        fresh: the state at the beginning of this run. The result has its identity, but still the settings of the run
            so far.

    Raises:
        UserError: if none of the states can be used, or the newest usable one belongs to another run.
    """
    say = learner.ranks.say
    path, state, refused = checkpoints.newest()
    say(*(f"ignored     {line}" for line in refused))
    if path is None or state is None:
        if refused:
            raise UserError(f"--from_resume 1: none of the resume states in {checkpoints.folder} can be used (the "
                            f"newest: {refused[0]}); --overwrite without --from_resume 1 sets them aside and "
                            "starts from the beginning")
        aside = f" ({shown(checkpoints.previous)} has those of the previous run)" * checkpoints.previous.exists()
        say(f"resume      no resume state in {shown(checkpoints.folder)}{aside}; starting from the beginning")
        return fresh
    compare_with_run(state, fresh, path, allow_changed_data, say)
    load_tensors(path, learner.model, learner.optimizer, learner.scaler, learner.ranks)
    say(f"resume      {shown(path)}")
    return replace(state, identity=fresh.identity)


def compare_with_run(state: TrainState, fresh: TrainState, path: Path, allow_changed_data: bool,
                     say: Callable[[str], None]) -> None:
    """Compares a resume state with the run that is to continue from it, and says what has changed.

    Raises:
        UserError: if the state belongs to another run.
    """
    for name, now in fresh.identity.items():
        was = state.identity.get(name, IMPLIED.get(name))
        if was == now:
            continue
        called = f"{name} (--{FLAG_OF[name]})" if name in FLAG_OF else name
        if not (allow_changed_data and name in CHANGEABLE):
            hint = "; --allow_changed_data 1 continues anyway" if name in CHANGEABLE else ""
            raise UserError(f"--from_resume 1: {called} was {_short(was)} in {path}, now it is {_short(now)}{hint}")
        say(f"resume      {called} was {_short(was)}, now it is {_short(now)} (--allow_changed_data 1)")
        state.forget_best()  # it may have been measured on other samples
    for name, now in fresh.settings.items():
        was = state.settings.get(name, IMPLIED.get(name, now))
        if was != now:
            say(f"resume      --{name} was {_short(was)}, now it is {_short(now)}")
            if name in ("best_by", *ANSWERS):
                state.forget_best()
    if state.samples_per_step != fresh.samples_per_step:
        say(f"resume      the run has {counted(state.samples_per_step, 'sample')} per step and keeps them "
            f"(the flags say {fresh.samples_per_step})")


def _short(value: Any) -> str:
    text = str(int(value) if isinstance(value, bool) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def end_of_run(state: TrainState, total_steps: int, weights: Path, settings: EvaluationSettings) -> str | None:
    """Says how the run to resume has ended, if it has and its weights exist; None if it has not.

    Raises:
        UserError: if its weights are gone, or it took more steps than it should now take.
    """
    stopped_early = state.finished and state.step < total_steps and has_stalled(state, settings)
    if state.finished and (state.step >= total_steps or stopped_early):
        if not weights.exists():
            raise UserError(f"--from_resume 1: that run is finished ({counted(state.step, 'step')}), but {weights} is "
                            "gone")
        if stopped_early:
            return (f"{shown(weights)}: that run stopped early ({state.step:,} of {counted(total_steps, 'step')}); "
                    "--early_stop_patience 0 continues it")
        return f"{shown(weights)}: that run is finished ({counted(state.step, 'step')}); nothing to do"
    if state.step > total_steps:
        raise UserError(f"--from_resume 1: the run has taken {counted(state.step, 'step')} already, more than the "
                        f"{total_steps:,} that --epochs and --max_steps ask for")
    return None
