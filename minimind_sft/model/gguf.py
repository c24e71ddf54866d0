"""Reads a model from a GGUF file."""

import re
from pathlib import Path
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.errors import describe as shown
from minimind_sft.gguf_file import PLAIN_DTYPES, GGUFFile
from minimind_sft.model.families.gguf_common import EMBEDDING, HEAD, Description
from minimind_sft.model.families.gguf_registry import GGUF_FAMILIES
from minimind_sft.model.families.gguf_rope import DIVISORS
from minimind_sft.model.families.translate import Translated
from minimind_sft.model.loaded import Weights

LAYER = re.compile(r"blk\.(\d{1,9})\.")


def read_gguf(path: Path) -> Weights:
    """Reads the header of a GGUF file; tensors are dequantised when they are asked for.

    Raises:
        UserError: naming the file, the key or tensor, and what to do, if it holds no model that the decoder computes.
    """
    file = GGUFFile(path)
    kind, name = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    if kind != "model":
        raise UserError(f"{path}: general.type: is {shown(kind)}, expected a whole model: an adapter has to be merged "
                        "into its base first")
    if not isinstance(name, str) or name not in GGUF_FAMILIES:
        raise UserError(f"{path}: general.architecture: {f'is {shown(name)}' if name else 'missing'}, expected "
                        f"{', '.join(GGUF_FAMILIES)}: other architectures cannot be read")
    family = GGUF_FAMILIES[name]
    try:
        config = family.read_config(_description(file))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Weights(path, config, Translated(family, config, file), None, _notices(file), name)


def _description(file: GGUFFile) -> Description:
    if EMBEDDING not in file.shapes:
        raise UserError(f"{EMBEDDING}: missing; the file holds no whole model")
    biases: dict[str, Any] = {"all": "blk.0.attn_output.bias", "qkv": "blk.0.attn_q.bias"}
    layers = {int(found[1]) for name in file.shapes if (found := LAYER.match(name))}
    return Description(
        file.metadata, layers=len(layers), vocab_size=file.shapes[EMBEDDING][0], has_head=HEAD in file.shapes,
        attention_bias=next((which for which, name in biases.items() if name in file.shapes), "none"),
        mlp_bias="blk.0.ffn_up.bias" in file.shapes,
        rope_divisors=file.read(DIVISORS) if DIVISORS in file.shapes else None)


def _notices(file: GGUFFile) -> tuple[str, ...]:
    quantised = sorted({stored.type for stored in file.stored.values()} - set(PLAIN_DTYPES))
    if not quantised:
        return ()
    return (f"{file.path} is quantised ({', '.join(quantised)}): the model starts from the rounded values, as float32",)
