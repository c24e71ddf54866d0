"""`pip install .` without -e: the library is in site-packages, the programs in a clone or absent."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import PATIENCE, PRETRAIN, REPOSITORY

pytestmark = pytest.mark.slow

PARTS = ("LICENSE", "README.md", "MANIFEST.in", "pyproject.toml", "setup.py", "eval_llm.py", "dataset", "minimind_sft",
         "model", "scripts", "trainer")
CACHES = shutil.ignore_patterns("__pycache__")  # other processes write there meanwhile


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, folder / part, ignore=CACHES)
        else:
            shutil.copy(REPOSITORY / part, folder / part)
    demo = folder / "dataset/pretrain_demo.jsonl"
    demo.write_text("".join(demo.read_text(encoding="utf-8").splitlines(keepends=True)[:100]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def installed(clone) -> Path:
    """Installs the package into a folder and deletes it from the clone, so that it cannot be imported there."""
    versions = {tool.metadata["Name"]: tool.version for tool in importlib.metadata.distributions()}
    if "pip" not in versions or version_of(versions.get("setuptools", "0")) < (70, 1):
        pytest.skip("needs pip, and a setuptools that builds wheels by itself (70.1)")
    folder = clone.parent / f"{clone.name}_packages"
    built = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                            "--target", folder, clone], capture_output=True, text=True, timeout=PATIENCE)
    assert built.returncode == 0, built.stderr
    shutil.rmtree(clone / "minimind_sft")
    return folder


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def python(packages: Path, *arguments: object, cwd: Path) -> str:
    """Returns what Python prints with the installed package first on its path."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1",
                                                 "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_contains_all_files(installed):
    there = {str(path.relative_to(installed)) for path in installed.rglob("minimind_sft/**/*")}
    for path in (REPOSITORY / "minimind_sft").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(REPOSITORY)) in there


@pytest.mark.parametrize("cwd", ["the clone", "another folder"])
def test_programs_of_a_clone_use_the_clone_s_files(clone, installed, tmp_path, cwd):
    said = python(installed, clone / PRETRAIN, "--preset", "demo", "--num_hidden_layers", 1, "--max_steps", 1,
                  "--eval_share", 0, "--save_weight", f"in_{cwd.split()[-1]}",
                  cwd=clone if cwd == "the clone" else tmp_path)
    assert "data        dataset/pretrain_demo.jsonl: " in said
    assert (clone / f"out/in_{cwd.split()[-1]}_256.pth").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_library_works_without_a_clone(installed, tmp_path):
    for name in ("model/tokenizer.json", "trainer/train_full_sft.py"):  # as in a clone of MiniMind
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    said = python(installed, "-c", """
import minimind_sft
from minimind_sft.data.chat_template import make_template
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.paths import in_repository

tokenizer = load_tokenizer(None)
print(minimind_sft.__file__)
print(tokenizer.vocab_size, tokenizer.encode_ordinary("Once upon a time") != [])
print(make_template(tokenizer, None, None).end_of_turn)
print(in_repository("out"))
""", cwd=tmp_path)
    assert said.splitlines() == [str(installed / "minimind_sft/__init__.py"), "6400 True", "<|im_end|>",
                                 str(tmp_path / "out")]
