"""docs/tour.md: its quotations are in the code, and its experiments print the shown output."""

import contextlib
import io
import re
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/tour.md").read_text(encoding="utf-8")
EXPERIMENT = re.compile(r"```python\n((?:(?!```).)*)```\n\n```\n(.*?)```", re.DOTALL)


def quotations() -> list[tuple[str, str]]:
    """Returns (files named before it, one stretch of lines) for each quotation; `...` in one leaves lines out."""
    found, files = [], ""
    for stop in re.split(r"^## ", EXPERIMENT.sub("", PAGE), flags=re.MULTILINE):
        files = " ".join(re.findall(r"\]\(\.\./(\S+\.py)\)", stop))
        for block in re.findall(r"```python\n(.*?)```", stop, re.DOTALL):
            found += [(files, stretch) for stretch in re.split(r"^ *\.\.\.\n", block, flags=re.MULTILINE)]
    return found


@pytest.mark.parametrize(("files", "lines"), quotations())
def test_quotations_are_in_the_files_that_the_stop_names(files: str, lines: str):
    assert any(textwrap.dedent(lines) in _dedented(REPOSITORY / file, lines) for file in files.split()), lines


def _dedented(path: Path, lines: str) -> str:
    """Returns the file with the indentation of the quotation removed."""
    indent = len(lines) - len(lines.lstrip(" "))
    return "".join(line[indent:] if line[:indent].isspace() else line
                   for line in path.read_text(encoding="utf-8").splitlines(keepends=True))


def test_experiments_print_what_the_page_shows(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    session: dict = {}
    for code, shown in EXPERIMENT.findall(PAGE):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, session)
        assert output.getvalue() == shown, code
