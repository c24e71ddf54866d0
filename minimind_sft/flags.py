"""A frozen dataclass of settings becomes a command line."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from minimind_sft.config import REPOSITORY
from minimind_sft.data.sources import split_share
from minimind_sft.errors import UserError

Config = TypeVar("Config")

PATH_FLAGS = ("data_path", "eval_data_path", "tokenizer_path", "save_dir", "prepared_dir", "score")


class FlagParser(argparse.ArgumentParser):
    """Reports a bad flag as a `UserError`: one line, without the page of usage that argparse prints."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all flags)")


def parse_flags(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Reads `argv` (the program's own arguments if None) into a `config_class`.

    Every field of the dataclass is a flag `--<name>`, or what stands without one; its metadata (see `config.setting`)
    is the help line. A field of type bool is a flag without a value.

    Raises:
        UserError: for an unknown flag, a value of the wrong type, or what the configuration's own `problems()` lists.
    """
    parser = FlagParser(description=textwrap.dedent(description).strip(), allow_abbrev=False,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
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
    if flag.type is bool:
        parser.add_argument(f"--{flag.name}", action="store_true", help=help_line)
        return
    options: dict[str, Any] = {"nargs": "*", "type": str} if many else {"type": _scalar_type(flag.type)}
    if choices:
        options["choices"] = choices
    else:
        options["metavar"] = flag.name.rsplit("_", 1)[-1].upper()
    parser.add_argument(f"--{flag.name}", default=flag.default, help=help_line, **options)


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
    """A typed path, relative to the working directory; MiniMind's `../x` is also tried from trainer/, and said."""
    if isinstance(typed, tuple | list):
        return tuple(_existing_path(name, one) for one in typed)
    path, share = split_share(typed)
    from_trainer = REPOSITORY / "trainer" / path
    if path.startswith("../") and not Path(path).exists() and from_trainer.exists():
        print(f"--{name} {path}: not here; taken relative to trainer/, as MiniMind does: {from_trainer.resolve()}",
              file=sys.stderr)
        return f"{from_trainer.resolve()}{share and ':'}{share}"
    return typed
