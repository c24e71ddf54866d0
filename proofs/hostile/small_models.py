"""A small model to change one thing of, as the programs write it."""

import json
from pathlib import Path

from export_models import random_weights

from hostile.programs import succeed
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.matching import encoding_facts
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.weights import weights_path, write_weights

SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                    intermediate_size=64)


def small_weights(folder: Path) -> Path:
    """Writes the weights of a small model with the bundled tokenizer, and their sidecar."""
    tokenizer = load_tokenizer(None)
    path = weights_path(folder, "small", SMALL)
    write_weights(path, random_weights(SMALL).build_model(), "float32",
                  {"stage": "full_sft", **encoding_facts(tokenizer, ChatTemplate(tokenizer))})
    return path


def written_as(form: str, weights: Path, output: Path, *flags: str) -> Path:
    """Converts weights with scripts/convert_model.py."""
    succeed(weights.parent, "scripts/convert_model.py", "--weight", str(weights), "--to", form, "--output", str(output),
            *flags)
    return output


def small_adapter(folder: Path, weights: Path) -> Path:
    """Trains an adapter of the small model for one step, in float32."""
    succeed(folder, "trainer/train_lora.py", "--from_weight", str(weights), "--lora_name", "small", "--lora_rank", "2",
            "--save_dir", str(folder), "--max_steps", "1", "--batch_size", "2", "--device", "cpu", "--eval_samples",
            "0", "--eval_share", "0", "--save_dtype", "float32")
    return folder / "lora_small_32.safetensors"


def chat(weights: Path) -> list[str]:
    """Returns the command that answers a prompt with two tokens."""
    return ["eval_llm.py", "--weight", str(weights), "--prompt", "Hello", "--max_new_tokens", "2", "--device", "cpu"]


def train(weights: Path, folder: Path) -> list[str]:
    """Returns the command that trains the weights for one step on two short conversations."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        row = json.dumps({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]})
        rows.write_text(f"{row}\n{row}\n", encoding="utf-8")
    return ["trainer/train_full_sft.py", "--from_weight", str(weights), "--data_path", str(rows), "--save_dir",
            str(folder / "out"), "--max_steps", "1", "--batch_size", "1", "--device", "cpu", "--eval_samples", "0",
            "--eval_share", "0", "--overwrite", "1"]
