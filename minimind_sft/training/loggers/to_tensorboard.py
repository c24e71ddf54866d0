"""TensorBoard: event files that `tensorboard --logdir` shows."""

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from minimind_sft.paths import shown
from minimind_sft.training.loggers.logger import LoggedRun
from minimind_sft.writing import create

FOLDER = "tensorboard"


class TensorBoardLogger:
    """A folder of event files, one for each start of the run.

    Events are written here and not by PyTorch's SummaryWriter, because that writes from a thread of its own and fails
    there, with a traceback, if the disk is full.
    """

    def __init__(self, run: LoggedRun):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import text

        self._event, self._summary, self._text = Event, Summary, text
        everything = run.folder / FOLDER
        folder = everything / (f"{run.name}-{run.id[:8]}" if run.id else run.name)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(create(folder / name))
        self._write(file_version="brain.Event:2")
        if run.first_step:  # a resumed run writes the steps after its resume state again
            self._write(step=run.first_step + 1, session_log=SessionLog(status=SessionLog.START))
        settings = [{"setting": key, "value": value} for key, value in run.settings.items()]
        self.log_table(run.first_step, "settings", settings)
        self.where = f"tensorboard --logdir {shown(everything)}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._write(step=step, summary=self._summary(
            value=[self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]))

    def log_table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write(step=step, summary=self._text(name, markdown_table(rows)))

    def finish(self, exit_code: int) -> None:
        self._records.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as a table in Markdown, whose cells are text and nothing else."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    """Escapes whatever Markdown or HTML might take for markup."""
    text = re.sub(r"[^\w\s]", lambda mark: f"&#{ord(mark[0])};", str(value))
    return "<br>".join(text.splitlines())
