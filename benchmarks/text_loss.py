"""Measures a model's loss on plain text, with or without adapters: what fine-tuning has cost it.

    python benchmarks/text_loss.py --weight SmolLM2-135M-Instruct.Q4_1.gguf \\
        --lora_weight out/lora_calls_576.safetensors --data_path text.jsonl

Prints the mean cross-entropy in nats. Documents are cut at 512 tokens and computed in bfloat16 where the CPU can, as
trainer/train_pretrain.py evaluates them.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from minimind_sft.data.batching import BatchLayout, EvaluationBatches
from minimind_sft.data.prepared import prepare
from minimind_sft.data.samples import PretrainEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.errors import run_program
from minimind_sft.evaluation.losses import validation_loss
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.adapters.reading import read_adapters
from minimind_sft.model.quantized import base_model
from minimind_sft.model.weights import read_weights
from minimind_sft.settings.lora import QUANTIZATIONS

MAX_SEQ_LEN = 512
MICRO_BATCH_TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", type=Path, required=True, help="weights, as a path")
    parser.add_argument("--lora_weight", nargs="*", default=[], help="adapters to apply, as paths")
    parser.add_argument("--quantize", default="none", choices=QUANTIZATIONS, help="keep the matrices in 4 bits")
    parser.add_argument("--data_path", type=Path, required=True, help="text, one document per row")
    arguments = parser.parse_args()
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    tokenizer = load_tokenizer(None, arguments.weight)
    weights = read_weights(arguments.weight)
    model = base_model(weights, arguments.quantize)
    if arguments.lora_weight:
        apply_adapters(model, read_adapters(arguments.lora_weight, "out", weights, "--lora_weight"))
    with tempfile.TemporaryDirectory() as folder:
        encoder = PretrainEncoder(tokenizer, MAX_SEQ_LEN)
        text = prepare([arguments.data_path], encoder, Path(folder), "stop", show_progress=False, say=print)
        batches = EvaluationBatches(text, BatchLayout(MICRO_BATCH_TOKENS, 0, 1, 1))
        measured = validation_loss(model.to(device), batches, device, dtype)
    print(f"loss on text: {measured.loss:.4f} ({measured.tokens:,} tokens, {str(dtype).removeprefix('torch.')})")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_program(main)
