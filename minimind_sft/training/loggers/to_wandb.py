"""Weights & Biases: https://docs.wandb.ai."""

import os
from collections.abc import Mapping, Sequence
from shutil import disk_usage
from typing import Any

from minimind_sft.paths import shown
from minimind_sft.training.loggers.background import FINISH_SECONDS
from minimind_sft.training.loggers.logger import LoggedRun, quiet_logging

MIN_FREE_BYTES = 2**16
"""With less at the end, wandb's files may be incomplete; wandb says so only in one of them."""
INIT_SECONDS = 60.0
"""How long it may try to reach the server; the run is under way before that."""
QUIET: dict[str, Any] = {"silent": True, "show_errors": False, "show_warnings": False}
"""Our own lines say what its lines would, and never tear the progress bar. It asks for no key either."""


class WandbLogger:
    """A run at Weights & Biases, or in a folder of this machine with WANDB_MODE=offline."""

    def __init__(self, run: LoggedRun):
        import wandb  # takes a second, so only on request

        quiet_logging()
        self._wandb = wandb
        wandb.setup(settings=wandb.Settings(**QUIET))
        self._folder = os.environ.get("WANDB_DIR", str(run.folder))
        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, resume="allow" if run.id else None, dir=self._folder,
            config=dict(run.settings),
            settings=wandb.Settings(console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS - 10,
                                    finish_timeout_raises=True, **QUIET))
        local = "disabled" if self._run.disabled else f"wandb sync {shown(self._run.settings.sync_dir)} sends this run"
        self.where = self._run.url or local

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._log(step, dict(numbers))

    def log_table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns: list[Any] = list(rows[0])
        self._log(step, {name: self._wandb.Table(columns, [[row[column] for column in columns] for row in rows])})

    def finish(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        finally:
            self._wandb.teardown()  # which wandb would do when Python exits, with a traceback if its process is gone
        if disk_usage(self._folder).free < MIN_FREE_BYTES:
            raise OSError(f"no room on the disk of {self._folder}, so some of the log may be missing")

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._run.starting_step:  # a resumed run repeats steps, and wandb keeps the first of each
            self._run.log(values, step=step)
