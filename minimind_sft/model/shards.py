"""Opens the weights of a Hugging Face folder: one file, or several shards with an index."""

from collections import defaultdict
from pathlib import Path

from torch import Tensor

from minimind_sft.errors import UserError, describe, printable
from minimind_sft.files import path_exists, read_object
from minimind_sft.model.weights_file import DTYPES, TensorFile, open_source
from minimind_sft.terminal import counted

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""The names of weights in one file; if they are in several, the index has that name and `.index.json`."""


class Shards:
    """The tensors of a folder. Shapes and names cost nothing; `read` reads one tensor.

    Raises:
        UserError: if a file is missing, cannot be read, or disagrees with the index; names it.
    """

    def __init__(self, folder: Path):
        self.path = folder
        self.notices: list[str] = []
        self._source_of: dict[str, TensorFile] = {}
        for shard, listed in _shards(folder).items():
            source, notices = open_source(folder / shard)
            self.notices += notices
            if listed is not None:
                _compare(folder / shard, set(source.shapes), listed)
            self._source_of |= dict.fromkeys(source.shapes, source)
        self.shapes = {name: source.shapes[name] for name, source in self._source_of.items()}

    def read(self, name: str) -> Tensor:
        """
        Raises:
            UserError: if the tensor does not hold floating-point numbers, as weights that are not quantised do.
        """
        source = self._source_of[name]
        if source.dtypes[name] not in DTYPES:
            raise UserError(f"{self.path}: {name}: is {source.dtypes[name]}, expected float16, bfloat16 or float32; "
                            "quantized weights cannot be used")
        return source.read(name)


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """Returns the names of the files, and of the tensors that each has according to the index, if there is one."""
    for single in SINGLE_FILES:
        index = folder / f"{single}.index.json"
        if index.is_file():
            listed = _read_index(index)
            if (folder / single).exists() and single not in listed:
                raise UserError(f"{folder}: has {single} as well as {index.name}, which lists other files: remove the "
                                "one that does not belong to the model")
            return {**listed}
        if (folder / single).exists():
            return {single: None}
    there = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    raise UserError(f"{folder}: has a config.json but no weights: expected {SINGLE_FILES[0]}, or "
                    f"{SINGLE_FILES[0]}.index.json and its shards; there is {', '.join(there) or 'neither'}")


def _read_index(index: Path) -> dict[str, set[str]]:
    """Reads which tensors are in which shard."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map: expected an object with the shard of each tensor, "
                        f"found {describe(weight_map)}")
    listed = defaultdict(set)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or "/" in shard or "\\" in shard:
            raise UserError(f"{index}: weight_map: {printable(name)}: expected the name of a file in the same folder, "
                            f"found {describe(shard)}")
        listed[shard].add(name)
    missing = sorted(shard for shard in listed if not path_exists(index.parent / shard))
    if missing:
        raise UserError(f"{index}: missing: {len(missing)} of {counted(len(listed), 'shard')}, the first is "
                        f"{printable(missing[0])}: download the model again")
    return dict(listed)


def _compare(shard: Path, found: set[str], listed: set[str]) -> None:
    """Checks that a shard has the tensors that the index lists for it."""
    for names, problem in ((listed - found, "is in the index, but not in this file"),
                           (found - listed, "is in this file, but not in the index, or there in another file")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{shard}: {printable(min(names))}{more} {problem}: download the model again")
