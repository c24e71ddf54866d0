"""A small model to change one thing of, as the programs write it."""

import json
import shutil
from pathlib import Path

from export_models import random_weights

from hostile.programs import made_once, succeed
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.matching import encoding_facts
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.weights import weights_path, write_weights

SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                    intermediate_size=64)


def small_weights(folder: Path) -> Path:
    """Writes the weights of a small model with the bundled tokenizer, and their sidecar."""
    return _copied(_weights(), folder)


def small_adapter(folder: Path) -> Path:
    """Writes an adapter of the small model that was trained for one step, in float32, and its sidecar."""
    return _copied(_adapter(), folder)


def written_as(form: str, output: Path) -> Path:
    """Writes the small model, or for "peft" its adapter, in another form, with scripts/convert_model.py."""
    def convert(folder: Path) -> None:
        adapter = ("--lora_weight", str(_adapter())) if form == "peft" else ()
        succeed(folder, "scripts/convert_model.py", "--weight", str(_weights()), "--to", form, "--output",
                str(folder / f"small.{form}"), *adapter)

    converted = made_once(form, convert) / f"small.{form}"
    return Path((shutil.copytree if converted.is_dir() else shutil.copyfile)(converted, output))


def _copied(path: Path, folder: Path) -> Path:
    for file in (path, path.with_suffix(".json")):
        shutil.copy(file, folder)
    return folder / path.name


def _weights() -> Path:
    def make(folder: Path) -> None:
        tokenizer = load_tokenizer(None)
        write_weights(weights_path(folder, "small", SMALL), random_weights(SMALL).build_model(), "float32",
                      {"stage": "full_sft", **encoding_facts(tokenizer, ChatTemplate(tokenizer))})

    return weights_path(made_once("weights", make), "small", SMALL)


def _adapter() -> Path:
    def make(folder: Path) -> None:
        succeed(folder, "trainer/train_lora.py", "--lora_name", "small", "--lora_rank", "2", "--save_dtype", "float32",
                *_one_step(_weights(), folder, folder))

    return made_once("adapter", make) / "lora_small_32.safetensors"


def chat(weights: Path) -> list[str]:
    """Returns the command that answers a prompt with two tokens."""
    return ["eval_llm.py", "--weight", str(weights), "--prompt", "Hello", "--max_new_tokens", "2", "--device", "cpu"]


def train(weights: Path, folder: Path) -> list[str]:
    """Returns the command that trains the weights for one step on two short conversations."""
    return ["trainer/train_full_sft.py", *_one_step(weights, folder, folder / "out"), "--overwrite", "1"]


def train_adapter(weights: Path, adapter: Path, folder: Path) -> list[str]:
    """Returns the command that trains an adapter of the weights for one more step."""
    return ["trainer/train_lora.py", "--from_lora", str(adapter), "--lora_name", "x",
            *_one_step(weights, folder, folder / "out"), "--overwrite"]


def _one_step(weights: Path, folder: Path, save_dir: Path) -> list[str]:
    rows = folder / "rows.jsonl"
    if not rows.exists():
        row = json.dumps({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]})
        rows.write_text(f"{row}\n{row}\n", encoding="utf-8")
    return ["--from_weight", str(weights), "--data_path", str(rows), "--save_dir", str(save_dir), "--max_steps", "1",
            "--batch_size", "1", "--device", "cpu", "--eval_samples", "0", "--eval_share", "0"]
