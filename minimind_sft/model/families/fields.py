"""Reads the fields of another project's configuration.

Each field is used, has the one value that the decoder computes, or is known to have no influence on the computation.
Every other field is refused by name, so that no model is silently computed in another way than its makers meant.
"""

import sys
from collections.abc import Mapping
from typing import Any

from minimind_sft.errors import UserError, describe, printable

MAX_SIZE = 10**9
MAX_LAYERS = 10_000

REQUIRED: Any = object()
"""The default of a field that every file has."""

NO_INFLUENCE = frozenset({
    # who made the file, and with what
    "_name_or_path", "architectures", "auto_map", "dtype", "model_type", "tokenizer_class", "torch_dtype",
    "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version",
    # special tokens, which the tokenizer knows
    "bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    # how transformers runs the model
    "_attn_implementation_autoset", "_flash_attn_2_enabled", "chunk_size_feed_forward", "gradient_checkpointing",
    "is_decoder", "output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_cache",
    "use_return_dict",
    # how it was initialised and trained; dropout is set by --dropout
    "attention_dropout", "attn_pdrop", "embd_pdrop", "initializer_range", "neftune_noise_alpha", "resid_pdrop",
    # heads for other tasks
    "_num_labels", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params",
    # defaults of sampling
    "begin_suppress_tokens", "do_sample", "max_length", "max_new_tokens", "min_length", "num_beams",
    "repetition_penalty", "temperature", "top_k", "top_p",
})
"""Fields that any family's config.json may have and that do not change the logits."""

ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "hidden_act": ("silu",),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
}
"""Fields that any family's config.json may have, with the values that the decoder computes."""


class Fields:
    """The fields of a JSON object, which remembers what was read.

    Messages start with the name of the field; the caller knows the file's.

    Args:
        values: the object.
        prefix: the name of the object itself and a dot, if it is a field of another one.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = ""):
        self._values = values
        self._prefix = prefix
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def whole(self, name: str, default: Any = REQUIRED, least: int = 1) -> int:
        """Returns a whole number from `least` to a thousand million, or `default` if the field is absent."""
        value = self._take(name, default)
        if value is not default and not (type(value) is int and least <= value <= MAX_SIZE):
            self.refuse(name, f"expected a whole number from {least}, found {describe(value)}")
        return value

    def layers(self, name: str) -> int:
        """Returns a number of layers, few enough to make a list of them."""
        value = self.whole(name)
        if value > MAX_LAYERS:
            self.refuse(name, f"is {value:,}, expected at most {MAX_LAYERS:,}")
        return value

    def whole_or_null(self, name: str, default: Any = REQUIRED) -> int | None:
        return None if self._is_null(name) else self.whole(name, default)

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """Returns a finite number of at least 0 as a float, or `default` if the field is absent."""
        value = self._take(name, default)
        if value is default:
            return default
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:  # a whole number may be larger
            self.refuse(name, f"expected a number from 0, found {describe(value)}")
        return float(value)

    def number_or_null(self, name: str) -> float | None:
        return None if self._is_null(name) else self.number(name, None)

    def flag(self, name: str, default: Any = REQUIRED) -> bool:
        value = self._take(name, default)
        if type(value) is not bool:
            self.refuse(name, f"expected true or false, found {describe(value)}")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> str:
        value = self._take(name, default)
        if type(value) is not str:
            self.refuse(name, f"expected a string, found {describe(value)}")
        return value

    def listed(self, name: str, kind: type, length: int) -> list[Any] | None:
        """Returns a list of `length` values of one type, or None if the field is absent or null."""
        if self._is_null(name) or name not in self:
            return None
        value = self._take(name, None)
        if not isinstance(value, list) or len(value) != length or any(type(item) is not kind for item in value):
            kinds = {int: "whole numbers", str: "strings"}[kind]
            self.refuse(name, f"expected a list of {length} {kinds}, one per layer, found {describe(value)}"
                        + (f" of {len(value)}" if isinstance(value, list) else ""))
        return value

    def inner(self, name: str) -> "Fields | None":
        """Returns the fields of an object inside, or None if it is absent, null or empty."""
        value = self._take(name, None)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            self.refuse(name, f"expected an object, found {describe(value)}")
        return Fields(value, f"{self._prefix}{name}.")

    def only(self, name: str, *values: Any) -> None:
        """Accepts the field if it is absent or null, or has one of the values that the decoder computes."""
        value = self._take(name, None)
        if value is not None and not any(_same(value, one) for one in values):
            self.refuse(name, f"is {describe(value)}, the decoder computes only {' or '.join(map(describe, values))}: "
                        "use another model")

    def equal(self, name: str, value: Any, other: str) -> None:
        """Accepts the field if it is absent or null, or equals the value of another field, which says the same."""
        own = self._take(name, None)
        if own is not None and not _same(own, value):
            self.refuse(name, f"is {describe(own)}, but {other} is {describe(value)}: remove the one that is wrong")

    def without_influence(self, *names: str) -> None:
        """Accepts fields that do not change what this family computes."""
        self._used.update(names)

    def finish(self) -> None:
        """
        Raises:
            UserError: naming a field that nothing has read and that is not known to have no influence.
        """
        if self._values.get("quantization_config") is not None:
            method = self._values["quantization_config"]
            method = method.get("quant_method") if isinstance(method, dict) else None
            self.refuse("quantization_config", f"quantised weights ({describe(method)}) cannot be trained: use the "
                        "model's folder in float16, bfloat16 or float32")
        if not self._prefix:
            for name, values in ONLY.items():
                if name not in self._used:
                    self.only(name, *values)
            self._used |= NO_INFLUENCE
        for name in self._values:
            if name not in self._used and not self._is_null(name):
                self.refuse(name, f"is {describe(self._values[name])}, a field unknown here: it may change what the "
                            "model computes; remove it from the file if you know that it does not")

    def refuse(self, name: str, problem: str) -> None:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{self._prefix}{printable(name)}: {problem}")

    def _is_null(self, name: str) -> bool:
        return self._values.get(name, REQUIRED) is None

    def _take(self, name: str, default: Any) -> Any:
        self._used.add(name)
        if name not in self._values and default is REQUIRED:
            self.refuse(name, "missing; the file that came with the model has it")
        return self._values.get(name, default)


def _same(value: Any, other: Any) -> bool:
    """Compares JSON values: 1 equals 1.0, but not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
