"""Keeps the messages typed in a chat for the next one, in a file that only its owner can read."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from minimind_sft.errors import UserError, first_line
from minimind_sft.strict_json import parse_json
from minimind_sft.writing import write_atomically

MAX_MESSAGES = 1_000
"""Messages kept when the file is shortened, at twice as many."""
MAX_CHARACTERS = 20_000
"""A longer message was pasted and is not kept."""
OPENED_SAFELY = (os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
                 | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its other end
OWNER_ONLY = 0o600


def history_path() -> Path:
    """Returns where messages are kept: $XDG_STATE_HOME/minimind_sft/chat_history.jsonl, by default in ~/.local/state.

    Raises:
        RuntimeError: if there is no home folder.
    """
    if sys.platform == "win32":
        state = os.environ.get("LOCALAPPDATA")
    else:
        state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "minimind_sft" / "chat_history.jsonl"


class MessageHistory:
    """The messages of earlier chats and of this one, the oldest first.

    Each line of the file is a message as a JSON string. A file that cannot be used costs one line, and the messages of
    this chat are kept in memory. A link is not followed: it may lead to a file of somebody else.
    """

    def __init__(self, notify: Callable[[str], None] | None = None):
        """Reads the file, and passes on why it cannot be used; without `notify`, uses no file."""
        self.messages: list[str] = []
        self._path: Path | None = None
        if notify is None:
            return
        try:
            path = history_path()
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._read(path)
        except (OSError, RuntimeError, UserError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            notify(f"typed messages are not kept for the next chat: {getattr(error, 'filename', None) or ''} {reason}")

    def add(self, message: str) -> None:
        """Keeps a message, unless it is the same as the one before."""
        if not message.strip() or self.messages[-1:] == [message] or len(message) > MAX_CHARACTERS:
            return
        self.messages.append(message)
        if self._path is None:
            return
        try:
            with _opened(self._path, os.O_WRONLY | os.O_APPEND) as handle:
                os.write(handle, _line(message))
        except OSError:  # a full disk must not end the chat
            self._path = None

    def _read(self, path: Path) -> None:
        with _opened(path, os.O_RDONLY) as handle, open(handle, encoding="utf-8", errors="replace",
                                                        closefd=False) as file:
            self.messages = [message for line in file if (message := _message(line)) is not None]
        self._path = path
        if len(self.messages) > 2 * MAX_MESSAGES:
            self.messages = self.messages[-MAX_MESSAGES:]
            write_atomically(path, self._write_all)

    def _write_all(self, path: Path) -> None:
        with _opened(path, os.O_WRONLY | os.O_EXCL) as handle:
            os.write(handle, b"".join(map(_line, self.messages)))


class _opened:
    """Opens a file of the user's own, for the user alone, without following a link."""

    def __init__(self, path: Path, flags: int):
        self.handle = os.open(path, flags | OPENED_SAFELY, OWNER_ONLY)
        found = os.fstat(self.handle)
        is_own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if not stat.S_ISREG(found.st_mode) or not is_own:
            os.close(self.handle)
            raise OSError(0, "not a file of your own", str(path))
        if hasattr(os, "fchmod") and stat.S_IMODE(found.st_mode) != OWNER_ONLY:
            os.fchmod(self.handle, OWNER_ONLY)

    def __enter__(self) -> int:
        return self.handle

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)


def _line(message: str) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _message(line: str) -> str | None:
    """Reads a message; None for a line that is torn or something else."""
    try:
        message = parse_json(line, "")
    except UserError:
        return None
    return message if isinstance(message, str) else None
