"""Renders self-contained HTML pages in one look: template, style and scripts in one file, nothing from the network.

A page's template extends `base.html.jinja` and imports the macros of `parts.html.jinja`, which draw what is defined
here and in `curves.py`. All text is escaped. Scripts run only if the page's content security policy has their hash.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
from markupsafe import Markup

from minimind_sft.errors import UserError
from minimind_sft.writing import check_replaceable_kind, check_writable, write_text_atomically

SHARED = "minimind_sft.report"
INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters of text that HTML does not allow, or that turn around what stands beside them."""
CHART_SCRIPT = "chart.js"

Weight = Literal["fine", "hint", "warning", "wrong"]
"""The weight of a verdict, a finding or a note; also the CSS class that colours it."""


class Badge(NamedTuple):
    """A coloured word in a table."""

    weight: Weight
    text: str


class Note(NamedTuple):
    """A sentence with its weight."""

    weight: Weight
    text: str


class Figure(NamedTuple):
    """A number that a reader should see first; `note` is below it, in the colour of `weight`."""

    name: str
    value: str
    note: str = ""
    weight: Weight | None = None


class Column(NamedTuple):
    """A column of a table; numbers are aligned on the right."""

    name: str
    is_number: bool = False


class Table(NamedTuple):
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Badge]]


class Bar(NamedTuple):
    """A bar of a histogram; `share` is its length in percent of the longest, `title` appears on hover."""

    label: str
    share: float
    value: str
    title: str
    stands_out: bool = False


class Finding(NamedTuple):
    """A finding in the data: `places` lists lines that have it, and `more` counts the others."""

    weight: Weight
    text: str
    places: Sequence[str] = ()
    more: int = 0
    is_open: bool = False


def render(template: str, *, package: str = SHARED, scripts: Sequence[str] = (CHART_SCRIPT,), connects: bool = False,
           **values: Any) -> str:
    """Renders a page.

    Args:
        template: a file of `package`; it may use the shared ones.
        scripts: files of the shared scripts or of `package` that the page runs, in this order.
        connects: whether the scripts may ask the page's own server for data.
        values: what the template shows.
    """
    sources = [_source(name, package) for name in scripts]
    loader = jinja2.FunctionLoader(lambda name: _source(name, package))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, loader=loader, finalize=_visible)
    return environment.get_template(template).render(
        style=Markup(_source("page.css", package)), scripts=[Markup(source) for source in sources],
        policy=policy(sources, connects), **values)


def policy(scripts: Sequence[str], connects: bool = False) -> str:
    """Returns the content security policy of a page: its own styles and scripts, and nothing from anywhere else."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts]
    return "; ".join(["default-src 'none'", "style-src 'unsafe-inline'", " ".join(["script-src", *hashes]),
                      *(["connect-src 'self'"] if connects else []), "base-uri 'none'", "form-action 'none'"])


def page_policy(scripts: Sequence[str], connects: bool = False) -> str:
    """Returns the policy of a page that runs some of the shared scripts, for a server that sends it as a header."""
    return policy([_source(name, SHARED) for name in scripts], connects)


def checked_page(name: str) -> Path:
    """Checks the place of a page that `--html` names, before anything is read.

    Raises:
        UserError: if no page can be written there.
    """
    path = Path(name)
    if path.is_dir():
        raise UserError(f"--html {path}: is a folder, expected a file or nothing")
    check_replaceable_kind(path)
    check_writable(path.parent, "--html")
    return path


def write_page(path: Path, text: str) -> None:
    write_text_atomically(path, text, errors="backslashreplace")


def _visible(value: Any) -> Any:
    """Escapes invisible characters of text; markup is ours."""
    if type(value) is not str:
        return value
    return INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _source(name: str, package: str) -> str:
    shared = files(SHARED) / name
    return (shared if shared.is_file() else files(package) / name).read_text(encoding="utf-8")
