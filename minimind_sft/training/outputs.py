"""Claims the files that a run writes; overwrites another run's files only when asked to.

Every run has an id, recorded in `run.json` beside its resume states and in the sidecar of its weights. By it, a resumed
run tells its own files from others that have since been put in their place.
"""

import json
import os
import shlex
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minimind_sft import __version__
from minimind_sft.errors import UserError
from minimind_sft.files import peek_object, sha256_of_file
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.model.weights import finish_writing
from minimind_sft.paths import shown
from minimind_sft.set_aside import bring_back, is_there, previous_name, set_aside, set_aside_file
from minimind_sft.settings.saving import SavingSettings
from minimind_sft.settings.training import TrainSettings
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import Ranks, restarted_by_torchrun
from minimind_sft.training.experience import Experience
from minimind_sft.training.resume_state import TrainState
from minimind_sft.writing import check_writable, write_text_atomically

RECORD = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """The run that a folder of resume states belongs to."""

    run: str | None
    """Its id; None for a run that an earlier version of this project began."""
    launcher: str
    """The torchrun that started it last (see `this_launcher`)."""


class Outputs:
    """The files of one run on the main rank's disk: weights, sidecar, metrics, and the folder of its resume states.

    Call the methods while holding that folder's lock, except `begun_elsewhere`.
    """

    def __init__(self, weights: Path, name_flag: str = "--save_weight"):
        self.name_flag = name_flag
        self.weights, self.states = weights, weights.parent / "checkpoints" / f"{weights.stem}_resume"
        self.sidecar, self.metrics = sidecar_path(weights), weights.with_name(f"{weights.stem}_metrics.jsonl")
        self.report = weights.with_name(f"{weights.stem}_report.html")
        self.previous = weights.with_name(f"{weights.stem}.previous")
        self.run: str | None = None
        """The id of this run, once `claim` has settled it."""
        self._in_the_way: list[Path] = []

    def begun_elsewhere(self) -> bool:
        """Whether the resume states belong to a run that this torchrun did not start.

        States without a record do: a run writes its record before its first state.
        """
        record = self._record()
        return record.launcher != this_launcher() if record else self._has_states()

    def claim(self, *, fresh: bool, overwrite: bool, reads: Path | None) -> None:
        """Settles which run this is, and refuses to write over another run's files.

        Args:
            fresh: whether this run starts from the beginning, even if there are resume states.
            reads: the weights that it starts from.

        Raises:
            UserError: if something is in the way and `overwrite` is not set.
        """
        bring_back(self.previous)
        finish_writing(self.weights)
        record, has_states = self._record(), self._has_states()
        is_new = fresh or not (has_states or record)
        self.run = uuid.uuid4().hex if is_new else record.run if record else None
        self._in_the_way = self._all_files() if is_new else self._not_own()
        for path in self._in_the_way:
            if path.is_dir():
                raise UserError(f"{path}: is a folder, expected a file or nothing; {self.name_flag} NAME "
                                "writes beside it")
        if is_new and reads is not None and any(reads.samefile(path) for path in self._in_the_way if path.exists()):
            raise UserError(f"--from_weight reads {shown(reads)}, and this run would replace it: choose another "
                            f"{self.name_flag}")
        if not overwrite and (self._in_the_way or (fresh and has_states)):
            raise UserError(self._refusal(is_new, has_states))

    def begin(self) -> dict[Path, list[Path]]:
        """Moves what is in the way, and records that the files are now this run's.

        Returns:
            {where they are now: the files that were moved there}.

        Raises:
            UserError: if a file cannot be moved or written.
        """
        moved = {self.previous: self._in_the_way} if self._in_the_way else {}
        if self._only_logs():
            moved = {previous_name(path): [path] for path in self._in_the_way}
            for path in self._in_the_way:
                set_aside_file(path)
        elif self._in_the_way:
            set_aside(self._in_the_way, self.previous)
        record = {"run": self.run, "launcher": this_launcher()}
        write_text_atomically(self.states / RECORD, json.dumps(record) + "\n")
        return moved

    def _only_logs(self) -> bool:
        """Whether only metrics and a report are in the way, left by a run that ended before it had weights.

        They must not push out the weights that were set aside for that run.
        """
        return {*self._in_the_way} <= {self.metrics, self.report}

    def _has_states(self) -> bool:
        return any(self.states.glob("step-*"))

    def _all_files(self) -> list[Path]:
        """Lists files of this run's name, including weights in the other format, which share the sidecar's name."""
        return [path for path in dict.fromkeys((
            self.weights, self.weights.with_suffix(".safetensors"), self.sidecar, self.metrics, self.report))
            if is_there(path)]

    def _not_own(self) -> list[Path]:
        """Lists weights and sidecar unless this run wrote them."""
        files = [path for path in (self.weights, self.sidecar) if is_there(path)]
        if not files:
            return []
        sidecar = peek_object(self.sidecar)
        if not sidecar or sidecar.get("run") != self.run:
            return files
        if self.run is None or not is_there(self.weights):  # earlier versions may leave half of a pair
            return []
        own = self.weights.is_file() and sha256_of_file(self.weights) == sidecar.get("sha256")
        return [] if own else files

    def _refusal(self, is_new: bool, has_states: bool) -> str:
        aside = previous_name(self._in_the_way[0]) if self._in_the_way and self._only_logs() else self.previous
        moves = f"--overwrite moves it to {shown(aside)}"
        if not self._in_the_way:
            return (f"{shown(self.states)} has resume states of an earlier run: --from_resume 1 continues it, "
                    f"{self.name_flag} NAME writes beside it, --overwrite sets them aside")
        there = shown(self._in_the_way[0])
        if not is_new:
            return f"{there} was not written by the run that --from_resume 1 continues: {moves}"
        goes_on = "--from_resume 1 continues that run, " if has_states else ""
        return f"{there} exists already{self._progress()}: {goes_on}{self.name_flag} NAME writes beside it, {moves}"

    def _progress(self) -> str:
        """Says how far the run came that wrote the existing weights, if their sidecar tells."""
        training = peek_object(self.sidecar).get("training")
        if not isinstance(training, dict) or not isinstance(training.get("step"), int):
            return ""
        loss = training.get("eval_loss")
        measured = f", validation loss {loss:.4f}" if isinstance(loss, float) else ""
        total = training.get("total_steps")
        return f" (step {training['step']:,} of {total:,}{measured})" if isinstance(total, int) else ""

    def _record(self) -> RunRecord | None:
        values = peek_object(self.states / RECORD)
        return RunRecord(values.get("run"), str(values.get("launcher"))) if values else None


@contextmanager
def claim_outputs(outputs: Outputs, saving: SavingSettings, ranks: Ranks, *, reads: Path | None,
                  shared: bool) -> Iterator[Checkpoints]:
    """Claims the files of a run and the folder of its resume states until the block ends.

    Args:
        reads: the weights that the run starts from, which it must not replace.
        shared: whether all ranks need to see the folder, because each writes a shard.

    Raises:
        UserError: if the folder is not writable, another run holds it, or this run would replace another run's files
            and `--overwrite` is not set.
    """
    ranks.on_main(lambda: check_writable(outputs.states, "--save_dir"))
    # torchrun counts restarts on each machine separately, so one restarted machine speaks for all. After a refusal, a
    # restarted run finds the states of the earlier run and must not continue from those.
    some_continue, some_resume = ranks.largest(int(continues_a_run(saving)), int(saving.from_resume))
    fresh = not some_continue or (not some_resume and ranks.on_main(outputs.begun_elsewhere))
    check = partial(outputs.claim, fresh=fresh, overwrite=saving.overwrite, reads=reads)
    keep = saving.keep_checkpoints
    with Checkpoints(outputs.states, keep=keep, ranks=ranks, fresh=fresh, check=check) as checkpoints:
        if shared:
            checkpoints.check_shared()
        if checkpoints.was_set_aside:
            ranks.say(f"overwrite   the earlier run's resume states moved to {shown(checkpoints.previous)}")
        yield checkpoints


def continues_a_run(saving: SavingSettings) -> bool:
    """Whether this process should continue from a resume state: the user or a restart by torchrun asks for it."""
    return saving.from_resume or restarted_by_torchrun()


def begin_outputs(outputs: Outputs, checkpoints: Checkpoints, state: TrainState, ranks: Ranks) -> None:
    """Moves another run's files out of the way; from here on all files of that name are this run's."""
    for aside, files in ranks.on_main(outputs.begin).items():
        ranks.say(f"overwrite   {', '.join(map(shown, files))} moved to {shown(aside)}")
    if not ranks.on_main(outputs.weights.exists):
        state.best_eval_loss = None  # the weights that had it are gone
    checkpoints.begin()


def this_launcher() -> str:
    """Names the torchrun that started this process, the same after a restart: by its run id, or else its process id."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run_id if run_id != "none" else f"process {os.getppid()}"


def this_command() -> str:
    """Returns the command line of this process, to paste in the repository."""
    return shlex.join(["python", shown(sys.argv[0]), *sys.argv[1:]])


def describe_run(settings: TrainSettings, state: TrainState, total_steps: int,
                 experience: Experience | None) -> dict[str, Any]:
    """Describes for the sidecar the run that made the weights, and how far it is."""
    return {
        "training": {
            "command": this_command(),
            "from_weight": settings.model.from_weight,
            "data": {" ".join(map(shown, settings.data.data_path)): state.identity["data"]},
            "step": state.step,
            "total_steps": total_steps,
            "samples_per_step": state.samples_per_step,
            "supervised_tokens": state.supervised_tokens,
            "eval_loss": state.eval_loss,
            "dtype": state.settings["dtype"],
            **({"experience": experience.for_sidecar()} if experience else {}),
        },
        "made_with": {"minimind_sft": __version__, "torch": torch.__version__},
    }
