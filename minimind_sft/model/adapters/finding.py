"""Finds the adapter that a name means: a file, or a folder of PEFT's."""

import re
from pathlib import Path

from minimind_sft.errors import UserError
from minimind_sft.files import path_exists
from minimind_sft.model.adapters.own_file import PREFIX
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.finding import HUB_NAME, SUFFIXES, meant, searched_folders
from minimind_sft.model.sidecar import sidecar_path

SIZE = re.compile(r"_\d+(_moe)?$")


def find_adapter(name: str, save_dir: str | Path, config: ModelConfig, flag: str) -> Path:
    """Finds an adapter for a model, first in `save_dir`, then in the repository's `out/`.

    `style` and `lora_style` mean `lora_style_<hidden_size>[_moe].safetensors`, or MiniMind's `lora_style_...pth` and
    `style_...pth`. Weights that are called `style_...pth` are not meant: they have a sidecar, MiniMind's adapters have
    none. A name with a slash is a path, to a file or to a folder; a name with a suffix is a file there or in
    the working directory.

    Raises:
        UserError: if there is none (lists those there are), or if there are several.
    """
    folders = searched_folders(save_dir)
    if name != Path(name).name or name.endswith(SUFFIXES):
        return _path(name, folders, flag)
    ending = f"_{config.hidden_size}{'_moe' * config.use_moe}"
    short = name.removeprefix(PREFIX)
    stems = {f"{PREFIX}{short}", f"{PREFIX}{short}{ending}"}
    names = [f"{stem}.safetensors" for stem in stems] + [f"{stem}.pth" for stem in stems]
    for folder in folders:
        found = sorted(path for one in names if (path := folder / one).is_file())
        unmarked = folder / f"{short}{ending}.pth"
        if unmarked.is_file() and not sidecar_path(unmarked).exists():
            found.append(unmarked)
        if len(found) > 1:
            raise UserError(f"{flag} {name} means several files: {', '.join(map(str, found))}; give one by its path")
        if found:
            return found[0]
    raise UserError(_nothing_found(flag, name, ending, folders))


def _path(name: str, folders: list[Path], flag: str) -> Path:
    path = Path(name)
    places = [path, *(folder / name for folder in folders if path.name == name)]
    for place in places:
        if path_exists(place):
            return place
    looked = f" (looked here and in {', '.join(map(str, folders))})" if len(places) > 1 else ""
    beside = [one.name for folder in {place.parent for place in places} if folder.is_dir()
              for one in folder.iterdir() if one.is_dir() or one.name.endswith(SUFFIXES)]
    hub = f"; to fetch it: hf download {name} --local-dir {path.name}" if HUB_NAME.fullmatch(name) else ""
    raise UserError(f"{flag} {name}: no such file or folder{looked}{meant(path.name, beside) or hub}")


def _nothing_found(flag: str, name: str, ending: str, folders: list[Path]) -> str:
    short = name.removeprefix(PREFIX)
    there = [path for folder in folders for suffix in SUFFIXES for path in sorted(folder.glob(f"{PREFIX}*{suffix}"))]
    others = [path for path in there if SIZE.sub("", path.stem) == f"{PREFIX}{short}"]
    if Path(name, "adapter_config.json").exists():
        hint = f"; for the folder of that name give {flag} ./{name}"
    elif others:
        hint = f"; {', '.join(path.name for path in others)} is for a model of another size"
    else:
        hint = meant(short, (SIZE.sub("", path.stem).removeprefix(PREFIX) for path in there))
    return (f"{flag} {name}: no {PREFIX}{short}{ending}.safetensors or .pth in {' or '.join(map(str, folders))}{hint}; "
            f"there is {', '.join(map(str, there)) or 'no adapter'}")
