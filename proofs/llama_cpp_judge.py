"""Asks llama.cpp, through node-llama-cpp, what it makes of GGUF files.

Install it once, with Node 20 or later (no compiler is needed):

    cd proofs/llama_cpp && npm install --ignore-scripts
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "llama_cpp"
INSTALL = "llama.cpp is not installed: cd proofs/llama_cpp && npm install --ignore-scripts"
SECONDS = 1800


def node_modules() -> Path | None:
    """Returns the folder with node-llama-cpp, or None: that of $MINIMIND_NODE_MODULES, or the one beside judge.mjs."""
    folder = Path(os.environ.get("MINIMIND_NODE_MODULES") or HERE / "node_modules")
    return folder if shutil.which("node") and (folder / "node-llama-cpp").is_dir() else None


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns llama.cpp's answers to requests; judge.mjs describes both.

    Raises:
        RuntimeError: with llama.cpp's own words, if it cannot load a file.
    """
    modules = node_modules()
    if modules is None:
        raise RuntimeError(INSTALL)
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder) / "requests.json", Path(folder) / "answers.json"
        questions.write_text(json.dumps(requests, default=str), encoding="utf-8")
        done = subprocess.run(["node", HERE / "judge.mjs", modules, questions, answers], capture_output=True,
                              timeout=SECONDS, encoding="utf-8", errors="replace", check=False)
        if done.returncode or not answers.is_file():
            raise RuntimeError(f"llama.cpp: {(done.stderr or done.stdout).strip()[-1000:]}")
        return json.loads(answers.read_text(encoding="utf-8"))
