"""SwanLab, which is easy to reach from China: https://docs.swanlab.cn."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from minimind_sft.paths import shown
from minimind_sft.training.loggers.logger import LoggedRun, quiet_logging


class SwanLabLogger:
    """A run at SwanLab, or in a folder of this machine with SWANLAB_MODE=offline or local."""

    def __init__(self, run: LoggedRun):
        import swanlab  # takes a second, so only on request

        quiet_logging()
        self._errors = _listen()
        self._swanlab = swanlab
        quiet = swanlab.Settings(interactive=False, terminal=swanlab.Settings.Terminal(proxy_type="none"))
        folder = os.environ.get("SWANLAB_LOG_DIR", str(run.folder / "swanlog"))
        resumed = {"id": run.id, "resume": "allow"} if run.id else {}
        self._run = swanlab.init(project=run.project, name=run.name, config=dict(run.settings), log_dir=folder,
                                 settings=quiet, **resumed)
        here = {"offline": f"swanlab sync {shown(self._run.dir)} sends this run",
                "local": f"swanlab watch {shown(folder)} shows this run"}
        self.where = self._run.url if self._run.mode == "online" else here.get(self._run.mode, self._run.mode)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._log(step, dict(numbers))

    def log_table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = self._swanlab.echarts.Table()
        table.add(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
        self._log(step, {name: table})

    def finish(self, exit_code: int) -> None:
        self._swanlab.finish("crashed" if exit_code else "success", f"exit code {exit_code}" if exit_code else None)
        self._check()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._swanlab.log(values, step=step)
        self._check()

    def _check(self) -> None:
        """
        Raises:
            RuntimeError: if SwanLab has lost something.
        """
        if self._errors:
            raise RuntimeError(self._errors[0])


def _listen() -> list[str]:
    """Keeps SwanLab's own lines off the progress bar, and returns the list to which it adds its errors from now on.

    It has no setting for either: it handles its errors itself, and shows them on a console of its own.
    """
    errors: list[str] = []
    with suppress(ImportError, AttributeError):
        from swanlab.sdk.internal.pkg import console

        def error(*words: Any, console_args: Sequence[Any] = (), **_: Any) -> None:
            errors.append(" ".join(map(str, words or console_args)))

        console.c.quiet = True
        console.error = error
    return errors
