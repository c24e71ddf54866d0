"""PEFT's adapter_config.json: how strong each change is, which modules have one, and what is refused.

Everything a field can say either is used, or changes nothing once an adapter is trained, or is refused by name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_sft.errors import describe
from minimind_sft.model.families.fields import Fields
from minimind_sft.regex_check import regex_problem

ALL_LINEAR = "all-linear"

REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias of lora_B",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "a router between adapters (Arrow)",
    "monteclora_config": "Monte Carlo LoRA",
    "alora_invocation_tokens": "an adapter that a text switches on (aLoRA)",
    "layer_replication": "a model with repeated layers",
    "trainable_token_indices": "single trained rows of the embedding",
}
"""Kinds of adapters that compute something else than W + scale * B A, by the field that switches them on."""

WITHOUT_INFLUENCE = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config",
    "corda_config", "ensure_weight_tying", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "qalora_group_size", "velora_config",
})
"""Fields that say where an adapter comes from and how it was trained. The tensors show what was trained in full."""

PLAIN_BEGINNINGS = ("eva", "gaussian", "mica", "orthogonal")
"""Values of `init_lora_weights` beside true and false that leave the base as it is. The others change it: PiSSA, OLoRA,
CorDA, LoRA-GA and LoftQ train beside what the first A and B leave of W."""

MAX_REPETITIONS, MAX_CHOICES = 5, 100_000
"""Of a regular expression for modules' names: each more makes finding out that it does not match take far longer."""
MAX_PATTERNS = 2000

Names = str | Sequence[str]


@dataclass(frozen=True)
class PeftConfig:
    """The fields of adapter_config.json that matter here, under PEFT's names.

    target_modules: a list of endings of modules' names, or a regular expression for whole names.
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    target_modules: Names | None = None
    target_parameters: Sequence[str] = ()
    exclude_modules: Names = ()
    layers_to_transform: Sequence[int] | None = None
    layers_pattern: Sequence[str] = ()
    fan_in_fan_out: bool = False

    def rank(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        rank, alpha = self.rank(module), _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the module has an adapter. Without `target_modules` PEFT chooses by the model: then any may have."""
        if self.target_modules == ALL_LINEAR:
            return not module.endswith("lm_head")
        if self.target_modules is None:
            return not self.target_parameters
        return (not _names(self.exclude_modules, module) and _names(self.target_modules, module)
                and (self.layers_to_transform is None or self._layer(module) in self.layers_to_transform))

    def targets_parameter(self, parameter: str) -> bool:
        return _names(self.target_parameters, parameter)

    def _layer(self, module: str) -> int | None:
        """Returns the module's layer: the first number in its name, or the one after `layers_pattern`."""
        found = [re.search(rf"(?:^|\.)(?:{pattern})\.(?P<layer>\d+)\.", module)
                 for pattern in self.layers_pattern or (r"[^.]+",)]
        return next((int(match["layer"]) for match in found if match), None)


def read_config(values: Mapping[str, Any]) -> PeftConfig:
    """
    Raises:
        UserError: naming a field that is missing, wrong or unknown, or that says what cannot be computed here.
    """
    fields = Fields(values)
    kind = fields.text("peft_type")
    if kind != "LORA":
        fields.refuse("peft_type", f"is {describe(kind)}, expected \"LORA\": other kinds of adapters cannot be read")
    for name, meaning in REFUSED.items():
        if values.get(name):
            fields.refuse(name, f"is {describe(values[name])}: {meaning} is not supported: use a plain LoRA adapter, "
                          "or merge this one in PEFT (merge_and_unload) and give that model's folder")
    if values.get("bias", "none") != "none":
        fields.refuse("bias", f"is {describe(values['bias'])}, expected \"none\": an adapter with trained biases is "
                      "not supported: train one without")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        fields.refuse("task_type", f"is {describe(values['task_type'])}, expected \"CAUSAL_LM\": give an adapter of a "
                      "language model")
    beginning = values.get("init_lora_weights", True)
    if not (beginning is None or isinstance(beginning, bool) or beginning in PLAIN_BEGINNINGS):
        fields.refuse("init_lora_weights", f"is {describe(beginning)}, which changes the base model "
                      "as well: save the adapter with path_initial_model_for_weight_conversion")
    layers_pattern = _list(fields, values, "layers_pattern", str) or ()
    for pattern in layers_pattern:
        _check_pattern(fields, "layers_pattern", pattern)
    config = PeftConfig(
        r=fields.whole("r"), lora_alpha=fields.number("lora_alpha"), use_rslora=fields.flag("use_rslora", False),
        rank_pattern=_patterns(fields, values, "rank_pattern"),
        alpha_pattern=_patterns(fields, values, "alpha_pattern"),
        target_modules=_names_or_pattern(fields, values, "target_modules"),
        target_parameters=_list(fields, values, "target_parameters", str) or (),
        exclude_modules=_names_or_pattern(fields, values, "exclude_modules") or (),
        layers_to_transform=_list(fields, values, "layers_to_transform", int) or None,
        layers_pattern=layers_pattern,
        fan_in_fan_out=fields.flag("fan_in_fan_out", False))
    known = PeftConfig.__dataclass_fields__.keys() | REFUSED.keys() | WITHOUT_INFLUENCE | {
        "bias", "init_lora_weights", "peft_type", "task_type"}
    for name in values:
        if name not in known and values[name] not in (None, False, [], {}):
            fields.refuse(name, f"is {describe(values[name])}, a field unknown here: it may change what the adapter "
                          "computes; remove it from the file if you know that it does not")
    return config


def _list(fields: Fields, values: Mapping[str, Any], name: str, kind: type) -> list[Any] | None:
    """Returns a list of names or layers, or None; PEFT takes a single one for a list of one."""
    value = values.get(name)
    if value is None or (isinstance(value, list) and all(type(item) is kind for item in value)):
        return value
    if type(value) is not kind:
        fields.refuse(name, f"expected a list of {'names' if kind is str else 'layers'}, found {describe(value)}")
    return [value]


def _names_or_pattern(fields: Fields, values: Mapping[str, Any], name: str) -> Names | None:
    """Returns a list of ends of names, a regular expression, or None."""
    value = values.get(name)
    if not isinstance(value, str):
        return _list(fields, values, name, str)
    _check_pattern(fields, name, value)
    return value


def _patterns(fields: Fields, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns numbers by regular expressions for names."""
    found = values.get(name) or {}
    if not isinstance(found, dict):
        fields.refuse(name, f"expected an object with a number for each name, found {describe(found)}")
    if len(found) > MAX_PATTERNS:
        fields.refuse(name, f"expected at most {MAX_PATTERNS:,} names, found {len(found):,}")
    inner = Fields(found, f"{name}.")
    for pattern in found:
        _check_pattern(inner, pattern, pattern)
    return {pattern: inner.whole(pattern) if name == "rank_pattern" else inner.number(pattern) for pattern in found}


def _check_pattern(fields: Fields, name: str, pattern: str) -> None:
    if problem := regex_problem(pattern, MAX_REPETITIONS, MAX_CHOICES):
        fields.refuse(name, problem)
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:  # a count of repetitions may be too large for Python
        fields.refuse(name, f"not a regular expression ({error})")


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches an end of the module's name."""
    return next((value for pattern, value in (patterns or {}).items()
                 if re.fullmatch(rf"(.*\.)?({pattern})", module)), default)


def _names(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def write_config(shapes: Mapping[str, tuple[int, float]], targets: Mapping[str, Any],
                 base: str | None) -> dict[str, Any]:
    """Returns the content of adapter_config.json.

    Args:
        shapes: rank and scale of each change, by the name of the module or parameter.
        targets: the fields that say what has an adapter.
        base: the name or folder of the base model, if known.
    """
    sizes = {name: (rank, _whole_if_possible(scale * rank)) for name, (rank, scale) in shapes.items()}
    found = list(sizes.values())
    rank, alpha = max(sorted(set(found)), key=found.count)
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "init_lora_weights": True,
        "rank_pattern": _patterns_for({name: size[0] for name, size in sizes.items()}, rank),
        "alpha_pattern": _patterns_for({name: size[1] for name, size in sizes.items()}, alpha), **targets}


def _patterns_for(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Returns the shortest patterns for the names with another value than the usual one."""
    found: dict[str, float] = {}
    for value in sorted(set(values.values()) - {usual}):
        having = [name for name, one in values.items() if one == value]
        found |= {re.escape(ending): value for ending in endings(having, list(values))}
    return found


def _whole_if_possible(number: float) -> float:
    return int(number) if number == int(number) else number


def endings(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the shortest ends of dotted names that all `wanted` have and no other of the `names` has."""
    others = set(names) - set(wanted)
    found = []
    for name in wanted:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        found.append(next(end for end in ends if not any(other.endswith(end) for other in others)))
    return list(dict.fromkeys(found))
