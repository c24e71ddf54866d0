"""Files are opened in two modules: files.py reads, writing.py writes. What libraries open by name is listed here."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PLACES = ("minimind_sft", "trainer", "scripts", "eval_llm.py")
SOURCES = sorted(path for place in PLACES for path in
                 ((REPOSITORY / place).rglob("*.py") if (REPOSITORY / place).is_dir() else [REPOSITORY / place]))
METHODS = {"write_text", "write_bytes", "read_text", "read_bytes", "touch", "symlink_to", "hardlink_to", "tofile"}
"""Of a path or an array; each opens a file."""
FUNCTIONS = {"open", "os.open", "os.truncate", "io.open", "gzip.open", "bz2.open", "lzma.open", "tempfile.mkdtemp",
             "tempfile.mkstemp", "tempfile.mktemp", "tempfile.NamedTemporaryFile", "tempfile.TemporaryDirectory",
             "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "np.save", "np.savez", "json.dump"}
ALLOWED = {
    "minimind_sft/files.py": {"os.open"},
    "minimind_sft/writing.py": {"os.open"},
    "minimind_sft/errors.py": {"os.open", "write_text"},  # the null device; a file that torchrun keeps for us alone
    "minimind_sft/inference/message_history.py": {"os.open", "open"},  # safely, and for the user alone
    "minimind_sft/training/run_facts.py": {"read_text"},  # /proc/cpuinfo
    "minimind_sft/data/chat_template.py": {"read_text"},  # below: files of the package itself
    "minimind_sft/evaluation/choices.py": {"read_text"},
    "minimind_sft/report/page.py": {"read_text"},
    "trainer/train_tokenizer.py": {"read_text"},
}


def openings(path: Path) -> set[str]:
    """Returns the calls in a module that open files by name, other than through files.py and writing.py."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            method = name.rpartition(".")[2]
            if name in FUNCTIONS:
                found.add(name)
            elif isinstance(node.func, ast.Attribute) and (method in METHODS or (method == "open" and is_path(node))):
                found.add(method)
    return found


def is_path(call: ast.Call) -> bool:
    """Tells whether `x.open(...)` is that of a path: a mode or nothing is given."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return all(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in given)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_are_opened_through_two_modules(path):
    assert openings(path) <= ALLOWED.get(path.relative_to(REPOSITORY).as_posix(), set())


def test_openings_are_found(tmp_path):
    (tmp_path / "a.py").write_text('Path("a").open("w")\nopen("a")\np.open()\np.write_text("x")\ndone.open(rows, 3)\n')
    assert openings(tmp_path / "a.py") == {"open", "write_text"}


def test_no_exception_is_listed_in_vain():
    assert {place: openings(REPOSITORY / place) for place in ALLOWED} == ALLOWED
