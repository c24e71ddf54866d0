"""Finds the weights that a name means: a file, or a Hugging Face folder."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.files import path_exists, peek_object, resolved
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.paths import REPOSITORY
from minimind_sft.terminal import counted

SUFFIXES = (".pth", ".safetensors")
"""Endings of the files that this project writes and names."""

PATH_SUFFIXES = (*SUFFIXES, ".gguf")
IN_FOLDER = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")
"""Names of weights in a Hugging Face folder."""

AN_ADAPTER = ("an adapter (LoRA), not a whole model: name the weights that it belongs to here, and the adapter with "
              "--lora_weight (in training --from_lora), or merge the two with scripts/merge_lora.py")
"""How an adapter in place of weights is refused."""

RECIPES = {"pretrain": "train_pretrain", "full_sft": "train_full_sft"}
SIZE = re.compile(r".*_(\d{1,9})(_moe)?", re.ASCII)
HUB_NAME = re.compile(r"[\w-]+/[\w.-]+(?<!\.pth)(?<!\.safetensors)(?<!\.gguf)")
"""How models are named on Hugging Face's hub, as in HuggingFaceTB/SmolLM2-135M. Nothing is downloaded here."""
MIB = 2**20


@dataclass(frozen=True)
class Candidate:
    """A weights file that a name may mean. A field is None if neither its name nor its sidecar gives it."""

    path: Path
    hidden_size: int | None
    use_moe: int | None
    num_hidden_layers: int | None
    parameters: int | None
    tokenizer: str | None
    """The fingerprint of the tokenizer used in training."""

    @classmethod
    def at(cls, path: Path) -> "Candidate":
        """Describes the file at `path` by its name and its sidecar."""
        sidecar = peek_object(sidecar_path(path))  # what is wrong with it is reported when the weights are read
        model = sidecar.get("model")
        if not isinstance(model, dict):
            model = {}
        in_name = SIZE.fullmatch(path.stem)
        tokenizer = sidecar.get("tokenizer")
        return cls(path, int(in_name[1]) if in_name else _count(model.get("hidden_size")),
                   int(bool(in_name[2])) if in_name else _count(model.get("use_moe")),
                   _count(model.get("num_hidden_layers")), _count(sidecar.get("parameters")),
                   tokenizer if isinstance(tokenizer, str) else None)

    def __str__(self) -> str:
        layers = self.num_hidden_layers
        facts = [f"{self.hidden_size} x {counted(layers, 'layer')}" if layers else "no sidecar",
                 f"{self.parameters / 1e6:.1f}M parameters" if isinstance(self.parameters, int)
                 else f"{self.path.stat().st_size / MIB:.1f} MiB"]
        return f"{self.path} ({', '.join(facts)})"


def _count(value: object) -> int | None:
    """Returns a number of a sidecar that counts something, or None if it is anything else."""
    return int(value) if isinstance(value, int) and 0 <= value < 2**63 else None


def find_weights(name: str, save_dir: str | Path, *, flag: str, hidden_size: int | None = None,
                 use_moe: int | None = None, preset: ModelConfig | None = None,
                 tokenizer: Callable[[], str] | None = None) -> Path:
    """Finds the file that a name means, first in `save_dir`, then in the repository's `out/`.

    `full_sft` means `full_sft_<hidden_size>[_moe].pth` or .safetensors; `full_sft_512` means that file; a name with a
    suffix means the file of that name, which may also be in the working directory. A name with a slash is a path, to
    a file or to a folder of Hugging Face; a file in such a folder means the folder.

    Args:
        hidden_size, use_moe: requirements on the file.
        preset, tokenizer: the model, and what returns the tokenizer's fingerprint; they decide among several files.

    Raises:
        UserError: if there is no such file (lists the files there are and the program that makes one), or several.
    """
    folders = searched_folders(save_dir)
    if name != Path(name).name or name == ".." or name.endswith(PATH_SUFFIXES):
        return _path(name, folders, flag)
    stem = re.compile(re.escape(name) + r"(_\d+(_moe)?)?")
    for folder in folders:
        found = [one for one in map(Candidate.at, _weight_files(folder)) if stem.fullmatch(one.path.stem)
                 and hidden_size in (None, one.hidden_size) and use_moe in (None, one.use_moe)]
        if len(found) > 1:
            return _the_one(found, flag, name, preset, tokenizer)
        if found:
            return found[0].path
    raise UserError(_nothing_found(flag, name, hidden_size, use_moe, folders))


def searched_folders(save_dir: str | Path) -> list[Path]:
    """Lists the folders in which a name is looked up."""
    folders = [Path(save_dir)]
    if resolved(folders[0]) != resolved(REPOSITORY / "out"):
        folders.append(REPOSITORY / "out")
    return folders


def _path(name: str, folders: list[Path], flag: str) -> Path:
    """Returns the file or folder at a path; a bare file name may also be in one of `folders`."""
    path = Path(name)
    expected = f"expected a file that ends in {', '.join(PATH_SUFFIXES[:-1])} or {PATH_SUFFIXES[-1]}"
    places = [path, *(folder / name for folder in folders if path.name == name)]
    found = next((place for place in places if path_exists(place) and place.is_file()), None)
    if found is None and path.is_dir():
        return path  # whether it is a model's is said when it is read
    if found is None:
        looked = f" (looked here and in {', '.join(map(str, folders))})" if len(places) > 1 else ""
        beside = [one.name for folder in {place.parent for place in places} if folder.is_dir()
                  for one in folder.iterdir() if one.is_dir() or one.name.endswith(PATH_SUFFIXES)]
        hub = f"; to fetch it: hf download {name} --local-dir {path.name}" if HUB_NAME.fullmatch(name) else ""
        raise UserError(f"{flag} {name}: no such file or folder{looked}{meant(path.name, beside) or hub}")
    if folder := folder_of(found):
        return folder
    if not name.endswith(PATH_SUFFIXES):
        raise UserError(f"{flag} {name}: {expected}")
    return found


def folder_of(path: Path) -> Path | None:
    """Returns the Hugging Face folder that a weights file is part of, by its name and the files beside it, or None."""
    is_part = IN_FOLDER.fullmatch(path.name) and (path.parent / "config.json").is_file()
    return path.parent if is_part and not sidecar_path(path).exists() else None


def _the_one(found: list[Candidate], flag: str, name: str, preset: ModelConfig | None,
             tokenizer: Callable[[], str] | None) -> Path:
    """Returns the one file that fits preset and tokenizer.

    Raises:
        UserError: if they do not leave exactly one; lists all files and says how to choose.
    """
    listed = f"{flag} {name} means several files: {', '.join(map(str, found))}"
    left = found
    if preset is not None:
        left = [one for one in left if (one.hidden_size, one.use_moe) == (preset.hidden_size, int(preset.use_moe))]
    if tokenizer is not None and len(left) > 1:
        fingerprint = tokenizer()
        left = [one for one in left if one.tokenizer in (None, fingerprint)]
        if not left:
            raise UserError(f"{listed}; none of them was trained with the tokenizer in use: give "
                            "--tokenizer_path FOLDER")
    if len(left) == 1:
        return left[0].path
    ways = [f"--{field} {' or '.join(map(str, values))}" for field in ("hidden_size", "use_moe")
            if None not in (values := sorted({getattr(one, field) for one in found}, key=str)) and len(values) > 1]
    raise UserError(f"{listed}; choose by {', '.join(ways)}{', or ' * bool(ways)}the path ({flag} {found[0].path})")


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}"))


def _nothing_found(flag: str, name: str, hidden_size: int | None, use_moe: int | None, folders: list[Path]) -> str:
    size = "*" if hidden_size is None else hidden_size
    moe = "[_moe]" if use_moe is None else "_moe" * use_moe
    files = [path for folder in folders for path in _weight_files(folder)]
    adapters = [path for path in files if peek_object(sidecar_path(path)).get("stage") == "lora"]
    there = [path for path in files if path not in adapters]
    made_by = f"; python trainer/{RECIPES[name]}.py makes it" if name in RECIPES else ""
    here = f"; for the folder of that name give {flag} ./{name}" if Path(name, "config.json").exists() else ""
    own = next((f"; {path} is an adapter, which --lora_weight takes" for path in adapters
                if path.stem.startswith(f"lora_{name}_")), "")
    names = [re.sub(r"_\d+(_moe)?$", "", path.stem) for path in there] + ["none"] * (flag == "--from_weight")
    hint = here or made_by or own or meant(name, names)
    return (f"{flag} {name}: no {name}_{size}{moe}.pth or .safetensors in {' or '.join(map(str, folders))}{hint}; "
            f"there is {', '.join(map(str, there)) or 'nothing'}")


def meant(name: str, names: Iterable[str]) -> str:
    """Suggests the most similar name, for one that was mistyped."""
    similar = get_close_matches(name, sorted(set(names)), n=1)
    return f"; did you mean {similar[0]}?" if similar else ""
