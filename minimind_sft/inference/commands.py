"""The commands of a chat, such as /undo and /save."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minimind_sft.data.conversation import Conversation, canonical_row, parse_conversation
from minimind_sft.data.reading import read_rows
from minimind_sft.errors import UserError
from minimind_sft.files import path_exists, resolved
from minimind_sft.terminal import counted
from minimind_sft.writing import write_text_atomically

if TYPE_CHECKING:  # torch takes seconds to import
    from minimind_sft.inference.chat import Chat, Continuation

WORD = re.compile(r"(/[A-Za-z]*)(?:\s+(.*))?", re.DOTALL)
SIMILAR = 0.9
"""Similarity of a word to a command that it is taken for, mistyped, when more words follow."""
NO_TURN = "none"
SWITCHES = {"on": True, "off": False}
ROW_SUFFIX = ".jsonl"
MAX_QUOTED = 300
PLACE = re.compile(r"(.*[^:]):(\d+)")


class Command(NamedTuple):
    """A command.

    argument: the name of its argument in /help; "" if it has none.
    run: obeys, given the argument or "", and returns what to print, or the pieces of an answer.

    A `UserError` that `run` raises needs no mention of the command.
    """

    name: str
    argument: str
    help: str
    run: Callable[[str], str | Iterator[str]]

    @property
    def usage(self) -> str:
        return f"{self.name} {self.argument}".rstrip()


def find_command(message: str, commands: Sequence[Command]) -> tuple[Command, str] | None:
    """Returns the command that a message gives, and its argument; None if it is a message for the model.

    `/etc is a folder` is a message, and so is a command that takes no argument with more words behind it.

    Raises:
        UserError: for a word that is no command but looks like one.
    """
    found = WORD.fullmatch(message.rstrip())
    if not found:
        return None
    word, argument = found[1].lower(), found[2] or ""
    by_name = {command.name: command for command in commands}
    if word in by_name:
        command = by_name[word]
        is_message = argument and (not command.argument or ("\n" in argument and command.argument != "TEXT"))
        return None if is_message else (command, argument)
    nearest = get_close_matches(word, by_name, n=1, cutoff=SIMILAR if argument else 0.6)
    if argument and not nearest:
        return None
    meant = f"; did you mean {nearest[0]}?" if nearest else "."
    raise UserError(f"{found[1]}: no such command{meant} /help lists all, and a blank in front sends it as a message")


def chat_commands(chat: "Chat") -> list[Command]:
    """Returns the commands of a chat."""
    files = _Files(chat)
    return [
        Command("/reset", "", "forget everything said", lambda _: _reset(chat)),
        Command("/clear", "", "the same", lambda _: _reset(chat)),
        Command("/system", "TEXT", "set the system turn", lambda text: _system(chat, text)),
        Command("/thinking", "on|off", "think before answers", lambda text: _thinking(chat, text)),
        temperature_command(chat),
        Command("/regen", "", "answer once more", lambda _: chat.regenerate()),
        Command("/undo", "", "drop the last question", lambda _: _undo(chat)),
        Command("/save", "FILE", "keep the conversation", files.save),
        Command("/load", "FILE", "go on with a kept one", files.load),
        Command("/tokens", "", "how full the context is", lambda _: _tokens(chat)),
    ]


def temperature_command(answerer: "Chat | Continuation") -> Command:
    """Returns the command that shows and sets the temperature."""
    def run(text: str) -> str:
        if text:
            try:
                answerer.settings = replace(answerer.settings, temperature=float(text))
            except UserError as error:
                raise UserError(str(error).removeprefix("--")) from error
            except ValueError as error:
                raise UserError(f"expected a number, found {text!r}") from error
        temperature = answerer.settings.temperature
        return f"temperature {temperature:g}" + ": always the most likely token" * (temperature == 0)

    return Command("/temp", "X", "set the temperature", run)


def _reset(chat: "Chat") -> str:
    chat.clear()
    return "The conversation starts over."


def _system(chat: "Chat", text: str) -> str:
    if text:
        chat.change(system=None if text == NO_TURN else text)
    return f"system turn: {chat.system}" if chat.system else "There is no system turn."


def _thinking(chat: "Chat", text: str) -> str:
    if text:
        if text.lower() not in SWITCHES:
            raise UserError(f"expected on or off, found {text!r}")
        chat.change(thinking=SWITCHES[text.lower()])
    return f"thinking is {'on' if chat.thinking else 'off'}"


def _undo(chat: "Chat") -> str:
    undone = chat.undo()
    return "There is no question to drop." if undone is None else f"dropped: {_quoted(undone)}"


def _tokens(chat: "Chat") -> str:
    messages = counted(len(chat.messages), "message")
    if chat.out_of_view:
        messages += f", the oldest {chat.out_of_view} out of view"
    if chat.in_use is None:
        return f"{messages}; the next answer tells how many of the context's {chat.context:,} tokens are in use"
    share = chat.in_use / chat.context
    return f"{messages}; {chat.in_use:,} of the context's {chat.context:,} tokens in use ({share:.0%})"


class _Files:
    """Saves and loads conversations: rows as in training data."""

    def __init__(self, chat: "Chat"):
        self.chat = chat
        self.own: set[Path] = set()
        """Files that this chat wrote, and may replace."""

    def save(self, name: str) -> str:
        """Writes the conversation as a row.

        Raises:
            UserError: if there is none, or the file cannot be written or has other contents.
        """
        messages = [*self.chat.messages, *([self.chat.unanswered] if self.chat.unanswered else [])]
        if not self.chat.messages:
            raise UserError("there is nothing to save yet")
        path = _path(name)
        if resolved(path) not in self.own and path_exists(path):
            raise UserError(f"{path}: the file exists and was not saved in this chat; choose another name")
        system = [{"role": "system", "content": self.chat.system}] if self.chat.system else []
        row = canonical_row(Conversation((*system, *map(_savable, messages)), self.chat.tools, ""))
        text = json.dumps(row, ensure_ascii=False) + "\n"
        write_text_atomically(path, text)
        self.own.add(resolved(path))
        return f"saved {counted(len(messages), 'message')} in {path}"

    def load(self, name: str) -> str:
        """Goes on with a conversation: FILE, or FILE:LINE where a file has several.

        Raises:
            UserError: if it cannot be read, or the chat template refuses it.
        """
        if not name:
            raise UserError("expected the name of a file")
        found = PLACE.fullmatch(name)
        path = _path(found[1] if found else name)
        rows = list(read_rows(path))
        if found:
            rows = [(place, row) for place, row in rows if place == f"{path}:{found[2]}"]
        if len(rows) != 1:
            expected = f"a conversation in line {found[2]}" if found else f"one conversation ({path}:LINE chooses it)"
            raise UserError(f"{path}: expected {expected}, found {len(rows):,}")
        conversation = parse_conversation(rows[0][1], rows[0][0])
        self.chat.resume(conversation)
        last = (f"{'> ' * (message['role'] == 'user')}{_quoted(message['content'])}"
                for message in conversation.messages[-2:])
        return "\n".join([f"loaded {counted(len(conversation.messages), 'message')}, which end in:", *last])


def _path(name: str) -> Path:
    """Returns the path of a file of rows.

    Raises:
        UserError: if there is no name.
    """
    path = Path(name.strip().strip("\"'"))
    if not path.name:
        raise UserError("expected the name of a file")
    with suppress(RuntimeError):  # the home of nobody; then it is a name like any other
        path = path.expanduser()
    return path if path.suffix else path.with_name(f"{path.name}{ROW_SUFFIX}")


def _savable(message: dict) -> dict:
    """Returns a message as a row may have it: an empty answer is not for training."""
    is_empty = message["role"] == "assistant" and not any(value for key, value in message.items() if key != "role")
    return message | {"train": False} if is_empty else message


def _quoted(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
