"""Runs the chat in the terminal: reads messages, obeys commands, shows answers while they are generated."""

from collections.abc import Sequence

from minimind_sft.errors import UserError
from minimind_sft.inference.answer_output import CONTROL_CHARACTERS, Answerer, show
from minimind_sft.inference.commands import Command, find_command
from minimind_sft.inference.message_history import MessageHistory
from minimind_sft.inference.message_input import MessageInput, discard_input, open_input
from minimind_sft.terminal import say

END = ("/exit", "/quit")
KEYS = """\
Ctrl-C stops an answer, drops a message.
A pasted block is one message.
"""
NEW_LINE = "Alt-Enter starts a new line.\n"
COMPLETES = "Tab completes commands.\n"


def converse(answerer: Answerer, commands: Sequence[Command], history: MessageHistory, show_speed: bool) -> None:
    """Answers typed messages until /exit, Ctrl-D, or Ctrl-C twice. A message that is refused costs one line.

    A message is a typed line, a pasted block, or lines ended with Alt-Enter.

    Args:
        commands: those besides /help and /exit.
    """
    commands = [Command("/help", "", "this list", lambda _: _help(commands, source)), *commands,
                *(Command(name, "", "end (/quit, Ctrl-D)", lambda _: "") for name in END)]
    source = open_input([command.name for command in commands], history)
    interrupted = False
    try:
        while True:
            try:
                message = source.read()
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("")
                if interrupted:
                    return
                interrupted = True
                say("Press Ctrl-C again, Ctrl-D, or type /exit to leave.")
                continue
            interrupted = False
            if message.rstrip() in END:
                return
            if message.strip():
                _obey_or_answer(answerer, commands, message, show_speed)
    finally:
        discard_input()


def _obey_or_answer(answerer: Answerer, commands: Sequence[Command], message: str, show_speed: bool) -> None:
    """Obeys a command, or answers a message. Either may be refused, in one line."""
    command = None
    try:
        if found := CONTROL_CHARACTERS.search(message):
            raise UserError(f"expected text, found the control character U+{ord(found[0]):04X} at character "
                            f"{found.start() + 1}")
        if given := find_command(message, commands):
            command, argument = given
            said = command.run(argument)
            if isinstance(said, str):
                say(f"{said}\n")
            else:
                show(answerer, said, show_speed)
        else:
            show(answerer, answerer.reply(message), show_speed)
    except UserError as error:
        told = str(error)
        refused = f"{command.name}: " if command else "not sent: "
        say(f"{told if told.startswith('/') else refused + told}\n")


def _help(commands: Sequence[Command], source: MessageInput) -> str:
    lines = [f"{command.usage:<17}{command.help}\n" for command in commands if command.name != END[1]]
    shows = "Without TEXT, X or on|off: shows it.\n" * any(command.argument for command in commands)
    return "".join(lines) + shows + KEYS + NEW_LINE * source.can_break_lines + COMPLETES * source.can_complete
