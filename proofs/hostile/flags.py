"""Flags of every program with values that they cannot have, and the environment variables that programs read."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from hostile.tries import Try
from minimind_sft.settings.chat import ChatSettings
from minimind_sft.settings.convert import ConvertModelSettings
from minimind_sft.settings.evaluate import EvaluateSettings
from minimind_sft.settings.merge import MergeSettings
from minimind_sft.settings.scripts import (
    ConvertSettings,
    EstimateSettings,
    InspectSettings,
    PlotSettings,
    TokenizerSettings,
    WatchSettings,
)
from minimind_sft.settings.spec import Flag, flags_of
from minimind_sft.settings.training import LoraSFTSettings, PretrainSettings, SFTSettings

KIND = "flags and environment variables"

NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "abc", "", "0x10", "1.5.2", "--", "\x1b[2J", "1;2", "½")
"""Values that no number has: each must be refused."""
HUGE = ("9" * 5000, "1" + "0" * 30, str(2**64), str(2**63), str(10**12), "-" + "9" * 30)
ODD = ("-1", "0", "-0", "1_0", "１２", "٣", " 5", "5 ", "+3", "1e-300", "1e300", "1e-45", "3", "007")
LONG_ON_PURPOSE = {"max_new_tokens", "eval_max_new_tokens", "epochs", "num_hidden_layers", "hidden_size", "max_steps",
                   "num_workers", "few_shot"}
"""A value inside their range may take its time: they get only values that must be refused."""
SPECIAL = {"cpu:99", "cuda:99999999999999999999", "cpu:-1", "meta", "xla", "cuda:-1", ":0", "\x1b[31m"}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "GROUP_RANK", "GROUP_WORLD_SIZE",
             "TORCHELASTIC_RESTART_COUNT")
NEVER_RANKS = ("x", "", "-1", "1.0", "1e3", "99999999999999999999", "0x1", "\x1b[2J", "nan", "１")
ODD_TERMINALS = ({"COLUMNS": "x", "LINES": "-1"}, {"COLUMNS": "0"}, {"COLUMNS": "99999999999"}, {"TERM": "\x1b[2J"},
                 {"NO_COLOR": "\x1b"}, {"TZ": "../../etc/passwd"}, {"LANG": "xx_YY.nothing"}, {"HOME": ""},
                 {"HOME": "/nowhere/at all"}, {"XDG_STATE_HOME": "\x1b[2J"}, {"OMP_NUM_THREADS": "x"},
                 {"CUDA_VISIBLE_DEVICES": "x"}, {"ONEDNN_MAX_CPU_ISA": "x"}, {"ATEN_CPU_CAPABILITY": "x"},
                 {"TORCHELASTIC_ERROR_FILE": "/nowhere/error.json"}, {"PYTHONIOENCODING": "nothing"})

CHAT_ROW = {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
TINY = ["--hidden_size", "16", "--num_hidden_layers", "1", "--max_steps", "1", "--max_seq_len", "64",
        "--eval_share", "0", "--eval_samples", "0", "--device", "cpu", "--dtype", "float32"]


def programs(folder: Path) -> dict[str, tuple[type, list[str]]]:
    """Writes what the programs need, and returns their settings and flags with which each does little work."""
    rows, text, metrics = folder / "rows.jsonl", folder / "text.jsonl", folder / "metrics.jsonl"
    rows.write_text(f"{json.dumps(CHAT_ROW)}\n" * 8, encoding="utf-8")
    text.write_text('{"text": "some words, and some more"}\n' * 8, encoding="utf-8")
    metrics.write_text("", encoding="utf-8")
    out = ["--save_dir", str(folder / "out")]
    return {
        "trainer/train_pretrain.py": (PretrainSettings, ["--data_path", str(text), *TINY, *out]),
        "trainer/train_full_sft.py": (SFTSettings, ["--data_path", str(rows), "--from_weight", "none", *TINY, *out]),
        "trainer/train_lora.py": (LoraSFTSettings, ["--data_path", str(rows), "--from_weight", "pretrain", *TINY[4:],
                                                    *out]),
        "trainer/train_tokenizer.py": (TokenizerSettings, ["--data_path", str(text), "--vocab_size", "300", *out]),
        "eval_llm.py": (ChatSettings, ["--weight", "pretrain", "--prompt", "hi", "--max_new_tokens", "2"]),
        "scripts/evaluate.py": (EvaluateSettings, ["--weight", "pretrain", "--text_path", str(text), "--data_path",
                                                   str(rows), "--max_new_tokens", "2"]),
        "scripts/inspect_data.py": (InspectSettings, [str(rows)]),
        "scripts/convert_data.py": (ConvertSettings, [str(rows), "--out", str(folder / "converted.jsonl")]),
        "scripts/estimate_memory.py": (EstimateSettings, ["--preset", "demo"]),
        "scripts/convert_model.py": (ConvertModelSettings, ["--weight", "pretrain", "--to", "gguf", "--output",
                                                            str(folder / "a.gguf")]),
        "scripts/merge_lora.py": (MergeSettings, ["--weight", "pretrain", "--lora_weight", str(folder / "no"), *out]),
        "scripts/plot_metrics.py": (PlotSettings, [str(metrics), "--out", str(folder / "a.png")]),
        "scripts/watch_training.py": (WatchSettings, [str(folder)]),
    }


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields every number with every unusable value, empty texts and paths, variables, and random combinations."""
    base = programs(folder)
    single, variables, combined = list(one_flag_each(base)), list(_environments(base)), count // 4
    random.shuffle(single)
    random.shuffle(variables)
    variables = variables[:count // 4]
    yield from variables
    yield from single[:count - combined - len(variables)]
    for number in range(combined):
        yield _combination(base, random, number)


def one_flag_each(base: Mapping[str, tuple[type, list[str]]]) -> Iterator[Try]:
    """Yields each flag of each program with each odd value."""
    for program, (settings, flags) in base.items():
        for flag in flags_of(settings):
            for value, expected in _values(flag, program):
                yield Try(f"{program} {flag}={value[:20]!a}", [program, *flags, f"{flag}={value}"], expected)


def _values(flag: Flag, program: str) -> Iterator[tuple[str, str]]:
    """Yields odd values of a flag, and what must become of them."""
    if flag.setting.positional or flag.type is bool:
        yield ("", "refused") if flag.type is not bool else ("x", "refused")
    elif flag.type in (int, float):
        yield from ((value, "refused") for value in NO_NUMBERS)
        fits = flag.type is float or "seed" in flag.name
        yield from ((value, "either" if fits else "refused") for value in HUGE)
        if flag.name not in LONG_ON_PURPOSE and "watch" not in program:
            yield from ((value, "either") for value in (*ODD, *(["1000000000"] if flag.type is int else [])))
    elif flag.setting.choices:
        yield from ((value, "refused") for value in ("", "x", "\x1b[31m"))
    elif flag.setting.kind == "path" or flag.setting.endings:
        yield from ((value, "refused") for value in ("",))
        yield "/nowhere/\x1b[31m\n\u202e", "either"
        yield "x" * 5000, "either"
    elif flag.name == "device":
        yield from ((value, "refused") for value in SPECIAL)
    else:
        yield from ((value, "either") for value in ("", "\x1b[31m\n", "x" * 5000))
        yield "\udcff", "refused"


def _environments(base: Mapping[str, tuple[type, list[str]]]) -> Iterator[Try]:
    program = "trainer/train_full_sft.py"
    command = [program, *base[program][1]]
    for name in VARIABLES:
        for value in NEVER_RANKS:
            read_alone = name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
            yield Try(f"{name}={value!a}", command, "refused" if read_alone else "either", environment={name: value})
    yield Try("RANK=1 alone", command, environment={"RANK": "1"})
    yield Try("WORLD_SIZE=2 alone", command, environment={"WORLD_SIZE": "2"})
    yield Try("no port", command, environment={"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"})
    yield Try("no address", command, environment={"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"})
    for variables in ODD_TERMINALS:
        for program in ("trainer/train_full_sft.py", "eval_llm.py", "scripts/inspect_data.py"):
            yield Try(f"{program} {variables}", [program, *base[program][1]], "either", environment=variables)


def _combination(base: Mapping[str, tuple[type, list[str]]], random: Random, number: int) -> Try:
    """Gives a program several random flags with random values."""
    program, (settings, flags) = random.choice(list(base.items()))
    chosen = random.sample(flags_of(settings), k=min(random.randint(2, 4), len(flags_of(settings))))
    given = []
    for flag in chosen:
        if values := list(_values(flag, program)):
            value, expected = random.choice(values)
            given.append((f"{flag}={value}", expected))
    must_fail = any(expected == "refused" for _, expected in given)
    return Try(f"combination {number}", [program, *flags, *(text for text, _ in given)],
               "refused" if must_fail else "either")
