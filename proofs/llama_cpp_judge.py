"""Asks llama.cpp, through node-llama-cpp, what it makes of a GGUF file.

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


def ask(model: Path, **request: Any) -> dict[str, Any]:
    """Returns llama.cpp's answer to a request; judge.mjs describes both.

    Raises:
        RuntimeError: with llama.cpp's own words, if it cannot load the file.
    """
    modules = node_modules()
    if modules is None:
        raise RuntimeError(INSTALL)
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        question.write_text(json.dumps({"model": str(model), **request}), encoding="utf-8")
        done = subprocess.run(["node", HERE / "judge.mjs", modules, question, answer], capture_output=True,
                              timeout=SECONDS, encoding="utf-8", errors="replace", check=False)
        if done.returncode or not answer.is_file():
            raise RuntimeError(f"llama.cpp cannot use {model}: {(done.stderr or done.stdout).strip()[-1000:]}")
        return json.loads(answer.read_text(encoding="utf-8"))
