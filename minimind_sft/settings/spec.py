"""Defines what a setting is: a field of a frozen dataclass that is also a flag `--<field name>`.

A *group* is a dataclass of settings that belong together (`OptimizerSettings`). The settings of a program are a
dataclass whose fields are groups, each with the group's defaults for that program as its default value
(`PretrainSettings`); a small program may do without groups. The first line of a group's docstring is its line in
`--help`.

Everything else that needs a list of settings derives it from what each setting says about itself.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from minimind_sft.errors import MAX_SHOWN

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

Kind = Literal["path", "share", "name"]
"""path: a file or folder, relative to the working directory. share: a number from 0 to 1. name: no path."""

Decides = Literal["samples", "tokens", "shape", "weights", "machine", "messages"]
"""What a setting decides beyond its own program:

samples: which samples come when. A resumed run must agree, unless --allow_changed_data permits a change.
tokens: how text becomes tokens. Chatting with the weights needs the same.
shape: the shape of the model, by the name of a field of `ModelConfig`.
weights: what is learned from the samples. A resumed run may change it, and reports the change.
machine: where a rank runs. Ranks may differ.
messages: the messages that a model answers.
"""

MAX_COUNT = 10**9
"""The largest whole number, unless its setting says something else."""
MAX_SEED = 2**62
UNDECODABLE = re.compile("[\ud800-\udfff]")
"""Python's forms of bytes that are not valid UTF-8."""


@dataclass(frozen=True)
class Setting:
    """What a setting says about itself.

    Attributes:
        help: its line in `--help`.
        choices: the only values it may have.
        min, above, max, below: its range; `above` and `below` exclude the bound.
        recorded_as: its key in resume states, where that is not its name.
        endings: how the name of a file to write must end.
        positional: a list of files that stands on the command line without a flag.
        required: has no default.
        secret: is never shown.
    """

    help: str
    choices: tuple[str, ...] = ()
    min: float | None = None
    above: float | None = None
    max: float | None = None
    below: float | None = None
    kind: Kind | None = None
    decides: Decides | None = None
    recorded_as: str | None = None
    endings: tuple[str, ...] = ()
    positional: bool = False
    required: bool = False
    secret: bool = False

    def range(self) -> str:
        """Describes the range in words."""
        if self.min is not None and self.max is not None:
            return f"{self.min:,} to {self.max:,}"
        bounds = (("at least", self.min), ("more than", self.above), ("at most", self.max), ("less than", self.below))
        return " and ".join(f"{words} {bound:,}" for words, bound in bounds if bound is not None)

    def contains(self, value: float) -> bool:
        """Says whether a finite number lies in the range."""
        return ((self.min is None or value >= self.min) and (self.above is None or value > self.above)
                and (self.max is None or value <= self.max) and (self.below is None or value < self.below))

    def expected(self, value: Any) -> str | None:
        """Says what was expected instead of `value`; None if the value is fine."""
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, int | float) and not self.contains(value):
            return self.range()
        if isinstance(value, int) and self.max is None and abs(value) > MAX_COUNT:
            return f"at most {MAX_COUNT:,}"
        return None


class Flag(NamedTuple):
    """A setting as one program has it.

    Attributes:
        group: the program's field that holds it; "" if the program has no groups.
        type: int, float, bool (a switch) or str.
        many: takes several values, in a tuple.
        value: the program's default, or the value in an object of settings.
    """

    name: str
    group: str
    type: type
    many: bool
    value: Any
    setting: Setting

    def __str__(self) -> str:
        return f"--{self.name}"


def setting(default: Any, help: str, **about: Any) -> Any:
    """Makes a dataclass field that is also a flag; `about` are the attributes of `Setting`."""
    if about.get("kind") == "share":
        about |= {"min": 0, "max": 1}
    return field(default=default, metadata={"setting": Setting(help, **about)})


def same_setting(group: type, name: str, **changed: Any) -> Any:
    """Makes a field like the one of another group, except for what is `changed` of its default and attributes."""
    (other,) = (one for one in fields(group) if one.name == name)
    default = changed.pop("default", other.default)
    return field(default=default, metadata={"setting": replace(other.metadata["setting"], **changed)})


def flags_of(settings: Any) -> list[Flag]:
    """Lists the flags of a program or a group: with the defaults of a class, or the values of an object."""
    flags = []
    for one in fields(settings):
        value = one.default if isinstance(settings, type) else getattr(settings, one.name)
        if is_dataclass(value):
            flags += [flag._replace(group=one.name) for flag in flags_of(value)]
        else:
            flags.append(_flag(one, value))
    return flags


def names_of(settings: Any, decides: Decides) -> list[str]:
    """Lists the names of the settings that decide something."""
    return [flag.name for flag in flags_of(settings) if flag.setting.decides == decides]


def recorded(settings: Any, decides: Decides) -> dict[str, Any]:
    """Returns the settings that decide something, by their keys in resume states, as JSON gives them back."""
    typed = as_typed(settings)
    return {flag.setting.recorded_as or flag.name: list(flag.value) if flag.many else typed[flag.name]
            for flag in flags_of(settings) if flag.setting.decides == decides}


def as_typed(settings: Any) -> dict[str, Any]:
    """Returns every setting by the name of its flag, as one would type it: switches are 0 or 1."""
    return {flag.name: int(flag.value) if isinstance(flag.value, bool) else flag.value
            for flag in flags_of(settings)}


def changed(settings: Settings, **values: Any) -> Settings:
    """Returns a program's settings with other values, given by the names of their flags."""
    groups: dict[str, dict[str, Any]] = {}
    where = {flag.name: flag.group for flag in flags_of(settings)}
    for name, value in values.items():
        groups.setdefault(where[name], {})[name] = value
    own = groups.pop("", {})
    return replace(settings, **own, **{group: replace(getattr(settings, group), **inner)
                                       for group, inner in groups.items()})


def problems(settings: Any) -> list[str]:
    """Lists what is wrong with the values, one line each, without loading anything.

    Checks ranges first, then calls the `problems` methods of the groups and of the program.
    """
    found = value_problems(flags_of(settings))
    return found + [problem for one in _parts(settings) if hasattr(one, "problems") for problem in one.problems()]


def value_problems(flags: list[Flag]) -> list[str]:
    """Lists what is wrong with the values of flags, each looked at by itself."""
    return [problem for flag in flags for problem in _problems_of(flag)]


def _parts(settings: Any) -> Iterator[Any]:
    """Yields the groups of a program, then the program itself."""
    yield from (value for one in fields(settings) if is_dataclass(value := getattr(settings, one.name)))
    yield settings


def _problems_of(flag: Flag) -> Iterator[str]:
    about, value = flag.setting, flag.value
    if expected := about.expected(value):
        yield f"{flag} is {str(value)[:MAX_SHOWN]}, expected {expected}"
    if about.kind == "name" and (not value or Path(value).name != value):
        yield f"{flag} is {value!r}, expected a name; --save_dir is the folder"
    if flag.type is str and about.kind != "path" and not about.secret:
        for text in map(str, value if flag.many else [value]):
            if UNDECODABLE.search(text):
                yield f"{flag}: expected text in valid UTF-8, found {text[:MAX_SHOWN]!a}"
    if about.endings and value and Path(value).suffix.lower() not in about.endings:
        yield f"{flag} {value}: expected a name that ends in {', '.join(about.endings)}"


def _flag(one: Field, value: Any) -> Flag:
    many = get_origin(one.type) is tuple
    kind: Any = one.type
    if many or isinstance(kind, UnionType):  # tuple[str, ...], int | None
        kind = next(kind for kind in get_args(one.type) if kind is not type(None))
    return Flag(one.name, "", kind, many, value, one.metadata["setting"])
