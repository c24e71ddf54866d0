"""A frozen dataclass of settings becomes a command line."""

import argparse
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from minimind_sft.data.sources import split_share
from minimind_sft.errors import UserError
from minimind_sft.foreign_flags import explanation
from minimind_sft.paths import REPOSITORY

Config = TypeVar("Config")

PATH_FLAGS = ("data_path", "eval_data_path", "tokenizer_path", "load_from", "chat_template", "from_weight", "weight",
              "save_dir", "prepared_dir", "score", "tools")

SWITCH = (0, 1)
"""The choices of a flag that may stand alone: `--use_wandb` is `--use_wandb 1`."""

FLAG_NAME = re.compile(r"--?[A-Za-z][\w-]*")

TYPOGRAPHY = re.compile(r"(?P<dashes>[-\u2010-\u2015\u2212\uff0d]+)(?P<name>\w+)(?P<space>[\xa0\u2002-\u200a\u3000].*)?"
                        r"(=.*)?", re.DOTALL)
"""A flag with the dashes or the space of a web page, a word processor or a Chinese keyboard."""

NOUNS = {int: "a whole number", float: "a number"}


class FlagParser(argparse.ArgumentParser):
    """Reports bad flags as a `UserError`: a line each, without the page of usage that argparse prints.

    `--learning-rate` is read as `--learning_rate`, and a switch without a value as 1. An unknown flag is answered with
    the one that may be meant.
    """

    def __init__(self, description: str):
        self.flags: list[str] = []
        self.switches: list[str] = []
        self.lists: list[str] = []
        super().__init__(description=textwrap.dedent(description).strip(), allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Adds a flag as argparse does; the choices `SWITCH` make it a switch."""
        kind, choices = options.get("type", str), options.get("choices")
        self.flags += names if names[0].startswith("-") else ["FILE"]
        if choices == SWITCH:
            self.switches += names
            options |= {"nargs": "?", "const": 1}
        if options.get("nargs") in ("*", "+"):
            self.lists += names
        if choices or kind in NOUNS:
            options["type"] = partial(_read_value, kind, choices)
        return super().add_argument(*names, **options)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """
        Raises:
            UserError: for unknown flags, all of them at once, or the first value that cannot be used.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        end = words.index("--") if "--" in words else len(words)
        problems: list[str] = []
        read = [self._read_flag(word, problems) for word in words[:end]]
        given = Counter(word.partition("=")[0] for word in read)
        problems += [f"{name} is given {given[name]} times, and only the last would count: put all values behind one"
                     for name in self.lists if given[name] > 1 and name.startswith("-")]
        if problems:
            self.error("\n       ".join(problems))
        return super().parse_args(self._bare_switches(read) + words[end:])

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (--help lists all flags)")

    def _read_flag(self, word: str, problems: list[str]) -> str:
        """Gives a flag the underscores of ours; adds what is wrong with it to `problems`."""
        problems += self._pasted_typography(word)
        name, equals, value = word.partition("=")
        if name in self.flags or not FLAG_NAME.fullmatch(name):
            return word
        own = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and f"--{own}" in self.flags:
            return f"--{own}{equals}{value}"
        if " " not in word:  # with a space it is a text that begins with a dash
            why = explanation(own, self.flags)
            problems.append(f"unknown flag {name}{': ' if why else ''}{why}")
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
        """Keeps a switch from taking the file behind it for its value, in programs whose files stand without a flag."""
        if "FILE" not in self.flags:
            return words
        return [f"{word}=1" if word in self.switches and not following.isdigit() else word
                for word, following in pairwise([*words, ""])]


def parse_flags(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Reads `argv` (the program's own arguments if None) into a `config_class`.

    Every field of the dataclass is a flag `--<name>`, or what stands without one; its metadata (see `config.setting`)
    is the help line.

    Raises:
        UserError: for an unknown flag, a value of the wrong type, or what the configuration's own `problems()` lists.
    """
    parser = FlagParser(description)
    for flag in fields(config_class):
        _add_flag(parser, flag)
    values = vars(parser.parse_args(argv))
    for name in PATH_FLAGS:
        if values.get(name):
            values[name] = _existing_path(name, values[name])
    config = config_class(**values)
    problems = config.problems() if hasattr(config, "problems") else []
    if problems:
        raise UserError("\n       ".join(problems))
    return config


def _add_flag(parser: argparse.ArgumentParser, flag: Field) -> None:
    many, choices = flag.metadata["many"], flag.metadata["choices"]
    help_line = flag.metadata["help"]
    shown = _shown_default(flag.default)
    if shown:
        help_line += f" (default: {shown})"
    help_line = help_line.replace("%", "%%")
    if flag.metadata["positional"]:
        parser.add_argument(flag.name, nargs="+", metavar="FILE", help=help_line)
        return
    options: dict[str, Any] = {"nargs": "*", "type": str} if many else {"type": _scalar_type(flag.type)}
    if choices:
        options["choices"] = choices
    else:
        options["metavar"] = flag.name.rsplit("_", 1)[-1].upper()
    parser.add_argument(f"--{flag.name}", default=flag.default, help=help_line, **options)


def _read_value(kind: Callable[[str], Any], choices: Sequence[Any] | None, text: str) -> Any:
    """A value of a flag.

    Raises:
        ArgumentTypeError: if it is not of its kind, or not one of the choices.
    """
    try:
        value = kind(text)
        if not choices or value in choices:
            return value
    except ValueError:
        pass
    if not choices:
        raise argparse.ArgumentTypeError(f"expected {NOUNS[kind]}, found {text!r}")
    *others, last = names = list(map(str, choices))
    nearest = get_close_matches(text.lower(), names, n=1, cutoff=0.5)
    expected = f"{', '.join(others)} or {last}" if others else last
    raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}"
                                     + (f"; did you mean {nearest[0]}?" if nearest else ""))


def _scalar_type(annotation: Any) -> type:
    """`int` for `int` and for `int | None`, and so on."""
    return next((t for t in get_args(annotation) if t is not type(None)), annotation)


def _shown_default(value: Any) -> str:
    """Paths inside the repository are shown relative to it; None, empty and () are not shown."""
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_shown_default, value))
    return str(value).removeprefix(f"{REPOSITORY}/")


def _existing_path(name: str, typed: Any) -> Any:
    """A typed path, relative to the working directory. In the repository's root MiniMind's `../x` is also tried from
    trainer/, and said; elsewhere it is what it says, so that nothing is written where nobody looks for it."""
    if isinstance(typed, tuple | list):
        return tuple(_existing_path(name, one) for one in typed)
    path, share = split_share(typed)
    if Path.cwd() != REPOSITORY or Path(path).parts[:1] != ("..",):
        return typed
    from_trainer = REPOSITORY / "trainer" / path
    if not Path(path).exists() and from_trainer.exists():
        print(f"--{name} {path}: not here; taken relative to trainer/, as MiniMind does: {from_trainer.resolve()}",
              file=sys.stderr)
        return f"{from_trainer.resolve()}{share and ':'}{share}"
    return typed
