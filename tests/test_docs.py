"""The documentation: links are valid, and a Chinese page matches its English page."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(page.relative_to(REPOSITORY).as_posix() for folder in (".", "docs", "dataset")
               for page in (REPOSITORY / folder).glob("*.md"))
CHINESE_PAGES = [page for page in PAGES if page.endswith("_zh.md")]


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def split_code(text: str) -> tuple[list[str], str]:
    """Returns the lines of code blocks, fenced or indented, without their comments, and the rest of the page."""
    code, rest, fenced = [], [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code.append(re.sub(r"(^|\s+)#\s.*", "", line).rstrip())
        else:
            rest.append(line)
    return [line for line in code if line], "\n".join(rest)


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", split_code(text)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def figures(row: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:[,.]\d+)*", re.sub(r"\]\([^)]*\)", "]", row)))


@pytest.mark.parametrize("page", PAGES)
def test_links_are_valid(page: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", split_code(read(page))[1]):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", CHINESE_PAGES)
def test_chinese_page_has_the_commands_and_tables_of_its_english_page(page: str):
    english = page.replace("_zh.md", ".md")
    assert read(page).splitlines()[2] == f"[English]({Path(english).name})"
    assert read(english).splitlines()[2] == f"[中文]({Path(page).name})"

    code, rest = split_code(read(page))
    english_code, english_rest = split_code(read(english))
    assert code == english_code
    levels, english_levels = (re.findall(r"^#+ ", text, re.MULTILINE) for text in (rest, english_rest))
    assert levels == english_levels
    rows, english_rows = ([line for line in text.splitlines() if line.startswith("|")] for text in (rest, english_rest))
    assert [figures(row) for row in rows] == [figures(row) for row in english_rows]


def test_architecture_page_lists_every_module_and_no_other():
    listing = re.search(r"^```\n(minimind_sft/\n.*?)^```", read("docs/architecture.md"), re.DOTALL | re.MULTILINE)[1]
    listed, folders = set(), []
    for line in listing.splitlines():
        entry = line.lstrip()
        folders = folders[:(len(line) - len(entry)) // 2]
        if folder := re.match(r"\w+/", entry):
            folders.append(folder[0])
        else:
            names = re.match(r"[\w.*]+(, [\w.]+)*", entry)[0].split(", ")
            listed |= {"".join(folders) + name for name in names if name.endswith(".py")}
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "minimind_sft").rglob("*.py")}
    assert listed == {module for module in modules if not module.endswith("__init__.py")}
