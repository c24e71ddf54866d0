"""The files that a run writes for use; nothing that another run wrote is overwritten unasked.

Every run has an id. It stands in `run.json` beside the run's resume states and in the sidecar of its weights, so that
a resumed run knows its own files from those that somebody put in their place meanwhile.
"""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.files import read_object, sha256_of_file, temporary_name, write_atomically
from minimind_sft.model.weights import finish_writing, sidecar_path
from minimind_sft.paths import shown
from minimind_sft.set_aside import bring_back, is_there, previous_name, set_aside, set_aside_file

RECORD = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """Which run a folder of resume states belongs to."""

    run: str | None
    """Its id; None for a run that an earlier version of this project began."""
    launcher: str
    """The torchrun that started it last (see `this_launcher`)."""


class Outputs:
    """Weights, sidecar and metrics of one run, and the folder of its resume states, on the main rank's disk.

    Everything here is called with the folder of resume states locked, but for `begun_elsewhere`.
    """

    def __init__(self, weights: Path, states: Path):
        self.weights, self.states = weights, states
        self.sidecar, self.metrics = sidecar_path(weights), metrics_path(weights)
        self.previous = weights.with_name(f"{weights.stem}.previous")
        self.run: str | None = None
        """The id of this run, once `claim` has settled it."""
        self._in_the_way: list[Path] = []

    def begun_elsewhere(self) -> bool:
        """Whether the resume states are of a run that this torchrun did not start; without a record they are, for a
        run writes its record before its first state."""
        record = self._record()
        return record.launcher != this_launcher() if record else self._has_states()

    def claim(self, *, fresh: bool, overwrite: bool, reads: Path | None) -> None:
        """Settles which run this is, and refuses to write over what another one wrote.

        Args:
            fresh: whether this run is to start anew, whatever resume states there are.
            reads: the weights that it starts from.

        Raises:
            UserError: if something stands where it is to write and `overwrite` is not set.
        """
        for path in (self.metrics, self.states / RECORD):
            temporary_name(path).unlink(missing_ok=True)
        bring_back(self.previous)
        finish_writing(self.weights)
        record, has_states = self._record(), self._has_states()
        is_new = fresh or not (has_states or record)
        self.run = uuid.uuid4().hex if is_new else record.run if record else None
        self._in_the_way = self._all_files() if is_new else self._not_own()
        for path in self._in_the_way:
            if path.is_dir():
                raise UserError(f"{path}: is a folder, expected a file or nothing; --save_weight NAME writes beside it")
        if is_new and reads is not None and any(reads.samefile(path) for path in self._in_the_way if path.exists()):
            raise UserError(f"--from_weight reads {shown(reads)}, and this run would replace it: choose another "
                            "--save_weight")
        if not overwrite and (self._in_the_way or (fresh and has_states)):
            raise UserError(self._refusal(is_new, has_states))

    def begin(self) -> list[Path]:
        """Sets aside what is in the way, and notes that from here on everything is this run's; returns what was moved.

        Raises:
            UserError: if a file cannot be moved or written.
        """
        if self._only_metrics():
            set_aside_file(self.metrics)
        elif self._in_the_way:
            set_aside(self._in_the_way, self.previous)
        record = {"run": self.run, "launcher": this_launcher()}
        write_atomically(self.states / RECORD, lambda to: to.write_text(json.dumps(record) + "\n", encoding="utf-8"))
        return self._in_the_way

    @property
    def aside(self) -> Path:
        """The folder, or for metrics alone the file, that the files in the way move to."""
        return previous_name(self.metrics) if self._only_metrics() else self.previous

    def _only_metrics(self) -> bool:
        """Says whether only metrics are in the way: a run that ended before it had weights left them, and they must not
        push out the weights that were set aside for it."""
        return self._in_the_way == [self.metrics]

    def _has_states(self) -> bool:
        return any(self.states.glob("step-*"))

    def _all_files(self) -> list[Path]:
        """Lists the files of this run's name, also weights in the other format, whose sidecar has the same name."""
        return [path for path in (self.weights, self.weights.with_suffix(".safetensors"), self.sidecar, self.metrics)
                if is_there(path)]

    def _not_own(self) -> list[Path]:
        """Lists weights and sidecar, if they are there and not what this run wrote last."""
        files = [path for path in (self.weights, self.sidecar) if is_there(path)]
        if not files:
            return []
        sidecar = self._read_sidecar()
        if sidecar is None or sidecar.get("run") != self.run:
            return files
        if self.run is None or not is_there(self.weights):  # earlier versions may leave half of a pair
            return []
        own = self.weights.is_file() and sha256_of_file(self.weights) == sidecar.get("sha256")
        return [] if own else files

    def _refusal(self, is_new: bool, has_states: bool) -> str:
        moves = f"--overwrite moves it to {shown(self.aside)}"
        if not self._in_the_way:
            return (f"{shown(self.states)} has resume states of an earlier run: --from_resume 1 goes on with it, "
                    "--save_weight NAME writes beside it, --overwrite sets them aside")
        there = shown(self._in_the_way[0])
        if not is_new:
            return f"{there} was not written by the run that --from_resume 1 goes on with: {moves}"
        goes_on = "--from_resume 1 goes on with that run, " if has_states else ""
        return f"{there} exists already{self._described()}: {goes_on}--save_weight NAME writes beside it, {moves}"

    def _described(self) -> str:
        """Says how far the run came that wrote the weights there, if their sidecar tells."""
        training = (self._read_sidecar() or {}).get("training")
        if not isinstance(training, dict) or not isinstance(training.get("step"), int):
            return ""
        loss = training.get("eval_loss")
        measured = f", validation loss {loss:.4f}" if isinstance(loss, float) else ""
        total = training.get("total_steps")
        return f" (step {training['step']:,} of {total:,}{measured})" if isinstance(total, int) else ""

    def _record(self) -> RunRecord | None:
        values = _read_object(self.states / RECORD)
        return RunRecord(values.get("run"), str(values.get("launcher"))) if values else None

    def _read_sidecar(self) -> dict[str, Any] | None:
        return _read_object(self.sidecar)


def metrics_path(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}_metrics.jsonl")


def this_launcher() -> str:
    """Names the torchrun that started this process, the same through its restarts: by its run id, or its process id
    where it was given none."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run_id if run_id != "none" else f"process {os.getppid()}"


def _read_object(path: Path) -> dict[str, Any] | None:
    """Reads the JSON object in a file; returns None if there is none."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return None
