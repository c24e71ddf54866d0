"""Checks the JSON part of a resume state, field by field: types, ranges, and that the counters agree."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from minimind_sft.errors import describe
from minimind_sft.manifest import Damaged
from minimind_sft.settings.runtime import DTYPES
from minimind_sft.settings.spec import Flag, flags_of
from minimind_sft.settings.training import LoraSFTSettings, PretrainSettings, SFTSettings
from minimind_sft.training.identity import ANSWERS

COUNTS = ("step", "updates", "bad_steps", "bad_steps_in_a_row", "samples_per_step", "supervised_tokens",
          "evaluations_without_gain")
SCORES = ("eval_loss", "best_eval_loss", "best_exact_match", "best_value")
MAX_COUNT = 2**53
"""Floats cannot tell higher whole numbers apart."""
MAX_FLOAT32 = 3.4e38
NO_MORE_THAN = (("updates", "step"), ("bad_steps", "step"), ("bad_steps_in_a_row", "bad_steps"))
"""Pairs of counters; the first is never above the second."""


def check_state(values: Mapping[str, Any]) -> None:
    """Checks the fields of a `TrainState` as JSON gives them; a field that earlier versions lack may be missing.

    Raises:
        Damaged: for the first field that is not as this project writes it.
    """
    for name in COUNTS:
        least = 1 if name == "samples_per_step" else 0
        if name in values and not _is_count(values[name], least):
            _refuse(name, f"a whole number from {least}", values[name])
    for name in SCORES:
        if values.get(name) is not None and not _is_number(values[name]):
            _refuse(name, "a finite number or null", values[name])
    if not isinstance(values["finished"], bool):
        _refuse("finished", "true or false", values["finished"])
    for name in ("identity", "settings"):
        if not isinstance(values[name], dict):
            _refuse(name, "an object", values[name])
    for name, most in NO_MORE_THAN:
        if values[name] > values[most]:
            raise Damaged(f"{name} is {values[name]}, more than {most}, which is {values[most]}")
    _check_settings(values["settings"])


def check_scaler(values: Any) -> None:
    """Checks the state of a GradScaler, which is empty unless the run is in float16.

    Raises:
        Damaged: for the first field that is not as PyTorch writes it.
    """
    if values == {}:
        return
    if not isinstance(values, dict):
        _refuse("scaler", "an object", values)
    ranges = {"scale": (0.0, MAX_FLOAT32), "growth_factor": (1.0, MAX_FLOAT32), "backoff_factor": (0.0, 1.0)}
    if set(values) != {*ranges, "growth_interval", "_growth_tracker"}:
        raise Damaged(f"scaler: expected the fields of a GradScaler, found {describe(', '.join(sorted(values)))}")
    for name, (low, high) in ranges.items():
        if not (_is_number(values[name]) and low < values[name] < high):
            _refuse(f"scaler: {name}", f"a number between {low:g} and {high:g}", values[name])
    for name, least in (("growth_interval", 1), ("_growth_tracker", 0)):
        if not (_is_count(values[name], least) and values[name] < 2**31):
            _refuse(f"scaler: {name}", f"a whole number from {least}", values[name])


def _check_settings(values: Mapping[str, Any]) -> None:
    """Checks the settings that decide what is learned, as far as this version knows them."""
    if "dtype" in values and values["dtype"] not in DTYPES:
        _refuse("settings: dtype", f"one of {', '.join(DTYPES)}", values["dtype"])
    for flag in _flags():
        if flag.name in values:
            expected = _expected(flag, values[flag.name])
            if expected:
                _refuse(f"settings: {flag.name}", expected, values[flag.name])


def _flags() -> Iterable[Flag]:
    """Lists the flags of all trainers that a state may record among its settings."""
    flags = {flag.name: flag for settings in (PretrainSettings, SFTSettings, LoraSFTSettings)
             for flag in flags_of(settings) if flag.setting.decides == "weights" or flag.name in ANSWERS}
    return flags.values()


def _expected(flag: Flag, value: Any) -> str | None:
    """Says what was expected instead of a recorded setting; None if it is fine."""
    if flag.many:
        is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return None if is_list else "a list of texts"
    if flag.type is bool:
        return None if type(value) is int and value in (0, 1) else "0 or 1"
    if flag.type is str:
        known = flag.setting.choices
        if value is None and flag.value is None:
            return None
        return None if isinstance(value, str) and (value in known or not known) else ", ".join(known) or "text"
    is_right = _is_number(value) and (flag.type is float or _is_count(value, 0))
    if not is_right:
        return "a whole number" if flag.type is int else "a finite number"
    return flag.setting.expected(value)


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < MAX_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _refuse(name: str, expected: str, value: Any) -> None:
    raise Damaged(f"{name}: expected {expected}, found {describe(value)}")
