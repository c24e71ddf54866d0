"""Turns a program's settings into its command line."""

import argparse
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from minimind_sft.errors import MAX_SHOWN, UserError
from minimind_sft.paths import REPOSITORY
from minimind_sft.settings.data import split_share
from minimind_sft.settings.foreign_flags import explanation
from minimind_sft.settings.spec import Flag, Settings, changed, flags_of, problems, value_problems
from minimind_sft.terminal import say

FILES = "FILE"
"""The name of the files that stand on the command line without a flag."""

FLAG_NAME = re.compile(r"--?[A-Za-z][\w-]*")

TYPOGRAPHY = re.compile(r"(?P<dashes>[-\u2010-\u2015\u2212\uff0d]+)(?P<name>\w+)(?P<space>[\xa0\u2002-\u200a\u3000].*)?"
                        r"(=.*)?", re.DOTALL)
"""A flag with the dashes or the space of a web page, a word processor or a Chinese keyboard."""

NOUNS = {int: "a whole number", float: "a number"}

SWITCHES = {"0": False, "1": True}


def parse_flags(program: type[Settings], description: str, argv: Sequence[str] | None = None) -> Settings:
    """Reads the settings of a program from `argv`, or from the process's own arguments if that is None.

    Raises:
        UserError: for an unknown flag, a value of the wrong type, or all that `spec.problems` finds.
    """
    values = vars(FlagParser(program, description).read(argv))
    for flag in flags_of(program):
        value = tuple(values[flag.name]) if flag.many else values[flag.name]
        values[flag.name] = _existing_path(flag, value) if flag.setting.kind == "path" and value else value
    try:
        settings = changed(program(), **values)
        found = problems(settings)
    except UserError:  # a group refused its own values; those of other groups may be wrong as well
        found = value_problems([flag._replace(value=values[flag.name]) for flag in flags_of(program)])
    if found:
        raise UserError("\n       ".join(found))
    return settings


class FlagParser(argparse.ArgumentParser):
    """Reports bad flags as a `UserError`, one line each, without the page of usage that argparse prints.

    Reads `--learning-rate` as `--learning_rate`, and a switch without a value as 1. Answers an unknown flag with the
    one that may be meant.
    """

    def __init__(self, program: type, description: str):
        flags = flags_of(program)
        files = f" {FILES} [{FILES} ...]" * any(flag.setting.positional for flag in flags)
        super().__init__(description=textwrap.dedent(description).strip(), allow_abbrev=False, formatter_class=Help,
                         usage=f"%(prog)s [--flag value ...]{files}")
        self.flags = ["-h", "--help", *(FILES if flag.setting.positional else str(flag) for flag in flags)]
        self.switches = [str(flag) for flag in flags if flag.type is bool]
        if self.switches:
            one = self.switches[-1]
            self.epilog = f"A switch needs no value: {one} means {one} 1, and {one} 0 turns it off."
        self.lists = [str(flag) for flag in flags if flag.many]
        groups = {"": self, **{one.name: self.add_argument_group(one.name, _first_line(type(one.default)))
                               for one in fields(program) if is_dataclass(one.default)}}
        for flag in flags:
            _add_flag(groups[flag.group], flag)

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Reads the values of all flags, which may be out of range.

        Raises:
            UserError: for unknown flags, all of them at once, or the first value that cannot be used.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        end = words.index("--") if "--" in words else len(words)
        found: list[str] = []
        read = [self._read_flag(word, found) for word in words[:end]]
        given = Counter(word.partition("=")[0] for word in read)
        found += [f"{name} is given {given[name]} times, and only the last would count: put all values behind one"
                  for name in self.lists if given[name] > 1]
        if found:
            self.error("\n       ".join(found))
        return self.parse_args(self._bare_switches(read) + words[end:])

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace("unrecognized arguments:", "these words belong to no flag:")
        raise UserError(f"{message} (--help lists all flags)")

    def _read_flag(self, word: str, found: list[str]) -> str:
        """Gives a flag the underscores of ours; adds what is wrong with it to `found`."""
        found += self._pasted_typography(word)
        name, equals, value = word.partition("=")
        if value == "--":  # which argparse takes away
            found.append(f"{name}: expected a value, found '--'")
        if name in self.flags or not FLAG_NAME.fullmatch(name):
            return word
        own = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and f"--{own}" in self.flags:
            return f"--{own}{equals}{value}"
        if " " not in word:  # with a space it is a text that begins with a dash
            why = explanation(own, self.flags)
            found.append(f"unknown flag {name}{': ' if why else ''}{why}")
        return word

    def _pasted_typography(self, word: str) -> list[str]:
        """Names dashes and spaces that look like a flag's and are not."""
        found = TYPOGRAPHY.fullmatch(word)
        if not found or f"--{found['name']}" not in self.flags:
            return []
        if not found["dashes"].isascii():
            return [f"{word}: a flag begins with two plain dashes, --{found['name']}"]
        return [f"{word!a}: expected a plain space after --{found['name']}"] if found["space"] else []

    def _bare_switches(self, words: list[str]) -> list[str]:
        """Keeps a switch from taking the file after it as its value, in programs that take files without a flag."""
        if FILES not in self.flags:
            return words
        return [f"{word}=1" if word in self.switches and not following.isdigit() else word
                for word, following in pairwise([*words, ""])]


class Help(argparse.HelpFormatter):
    """Fits a program's docstring to the terminal, but keeps the commands in it whole."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=6)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            textwrap.indent(paragraph, indent) if paragraph.startswith(" ") else super(Help, self)._fill_text(
                paragraph, width, indent)
            for paragraph in text.split("\n\n"))


def _first_line(group: type) -> str:
    return (group.__doc__ or "").partition("\n")[0]


def _add_flag(group: Any, flag: Flag) -> None:
    """Adds a flag to a group of the parser, or to the parser."""
    about, shown = flag.setting, _shown_default(flag.value)
    help_line = (about.help + (f" (default: {shown})" if shown else "")).replace("%", "%%")
    if about.positional:
        group.add_argument(flag.name, nargs="+", metavar=FILES, help=help_line, type=_read_path)
        return
    options: dict[str, Any] = {"metavar": _value_name(flag), "required": about.required}
    if flag.type is bool:
        options |= {"nargs": "?", "const": True, "metavar": "{0,1}", "type": partial(_read_choice, SWITCHES)}
    elif about.choices:
        options |= {"metavar": f"{{{','.join(about.choices)}}}",
                    "type": partial(_read_choice, {choice: choice for choice in about.choices})}
    elif about.kind == "path" or about.endings:
        options["type"] = _read_path
    elif flag.type in NOUNS:
        options["type"] = partial(_read_number, flag.type)
    if flag.many:
        options["nargs"] = "+"
    group.add_argument(str(flag), default=flag.value, help=help_line, **options)


def _value_name(flag: Flag) -> str:
    """Returns what `--help` shows after a flag in place of its value."""
    if flag.setting.kind == "path" or flag.setting.endings:
        return "PATH"
    return {int: "N", float: "X"}.get(flag.type, flag.name.rpartition("_")[2].upper())


def _read_number(kind: type[int] | type[float], text: str) -> int | float:
    """
    Raises:
        ArgumentTypeError: if `text` is no number of that kind.
    """
    try:
        return kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {NOUNS[kind]}, found {text[:MAX_SHOWN]!r}") from error


def _read_path(text: str) -> str:
    """
    Raises:
        ArgumentTypeError: if there is no text, which Python would take for the working directory.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found nothing")
    return text


def _read_choice(choices: dict[str, Any], text: str) -> Any:
    """
    Raises:
        ArgumentTypeError: if `text` is not one of the choices; names the one that may be meant.
    """
    if text in choices:
        return choices[text]
    *others, last = choices
    nearest = get_close_matches(text.lower(), choices, n=1, cutoff=0.5)
    expected = f"{', '.join(others)} or {last}" if others else last
    raise argparse.ArgumentTypeError(f"expected {expected}, found {text[:MAX_SHOWN]!r}"
                                     + (f"; did you mean {nearest[0]}?" if nearest else ""))


def _shown_default(value: Any) -> str:
    """Words a default for `--help`: paths inside the repository relative to it, switches as 0 or 1, and "" for None
    and empty values."""
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return " ".join(map(_shown_default, value))
    return str(value).removeprefix(f"{REPOSITORY}/")


def _existing_path(flag: Flag, typed: Any) -> Any:
    """Returns a typed path, which is relative to the working directory.

    In the repository's root, a `../x` that does not exist is taken relative to trainer/, as in MiniMind's commands,
    with a notice. Elsewhere it stays as it is, so that nothing is written where nobody looks for it.
    """
    if isinstance(typed, tuple):
        return tuple(_existing_path(flag, one) for one in typed)
    path, share = split_share(typed)
    if Path.cwd() != REPOSITORY or Path(path).parts[:1] != ("..",):
        return typed
    from_trainer = REPOSITORY / "trainer" / path
    if not Path(path).exists() and from_trainer.exists():
        say(f"{flag} {path}: not here; taken relative to trainer/, as MiniMind does: {from_trainer.resolve()}",
            sys.stderr)
        return f"{from_trainer.resolve()}{share and ':'}{share}"
    return typed
