"""The layers of docs/architecture.md: what each part of the library may import."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARY = REPOSITORY / "minimind_sft"
PROGRAMS = {"trainer", "scripts", "eval_llm", "proofs", "benchmarks", "dataset", "tests"}

MODULES_BELOW = {"", "device", "environment", "errors", "files", "gguf_file", "host_names", "labels", "languages",
                 "locks", "manifest", "output", "paths", "processes", "regex_check", "set_aside", "strict_json",
                 "terminal", "writing"}
LAYERS = {
    "model.config": set(),
    "settings": {"model.config"},
    "data": {"settings"},
    "model": {"settings", "model.config"},
    "matching": {"data", "model"},
    "training": {"settings", "data", "model", "model.config", "matching", "report"},
    "inference": {"settings", "data", "model", "model.config", "matching"},
    "evaluation": {"settings", "data", "model", "model.config", "matching", "inference"},
    "report": {"settings"},
    "serving": {"settings", "data", "model", "model.config", "matching", "inference"},
    "inspection": {"settings", "data", "report"},
    "export": {"settings", "data", "model", "model.config"},
}
"""What each part may import besides itself and the modules that every part may use."""


def imports(path):
    """Returns the full names of the modules and objects that a file imports, wherever in the file that is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path):
    """Returns the name of a module without the leading `minimind_sft`."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in LIBRARY.rglob("*.py")}
IMPORTED = {name: set(imports(path)) for name, path in MODULES.items()}


def own(imported):
    """Returns which modules of the library are among the imported names."""
    inner = {name.removeprefix("minimind_sft").lstrip(".") for name in imported if name.split(".")[0] == "minimind_sft"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inner}


def part(module):
    """Returns the part that a module belongs to: a package, or the module itself if it stands alone."""
    return module if module in LAYERS else module.split(".")[0]


def test_each_part_imports_only_the_layers_below_it():
    wrong = [f"{module} imports {other}" for module, imported in IMPORTED.items() for other in sorted(own(imported))
             if part(other) not in MODULES_BELOW | {part(module)} | LAYERS.get(part(module), set())]
    assert not wrong


def test_the_layers_have_no_cycle():
    TopologicalSorter(LAYERS).prepare()


def test_no_modules_import_each_other():
    try:
        TopologicalSorter({module: own(imported) - {module} for module, imported in IMPORTED.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(name or "minimind_sft" for name in reversed(error.args[1])))


def test_a_family_is_data():
    """Translators know our configuration and the names and shapes of our tensors; nothing of files and programs."""
    known = {"errors", "model.config", "model.decoder", "model.loaded", "model.rope_scaling"}
    families = {name for name in MODULES if name.startswith("model.families")}
    assert not {f"{module} imports {name}" for module in families for name in own(IMPORTED[module]) - families - known}


@pytest.mark.parametrize(("package", "users"), [("transformers", set()), ("gguf", {"gguf_file"})])
def test_packages_that_need_not_be_installed_have_one_way_in(package, users):
    found = {module for module, imported in IMPORTED.items() if package in {name.split(".")[0] for name in imported}}
    assert found == users


def test_the_library_never_imports_the_programs():
    assert not {f"{module} imports {name}" for module, imported in IMPORTED.items() for name in imported
                if name.split(".")[0] in PROGRAMS}
