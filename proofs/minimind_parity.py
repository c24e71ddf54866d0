"""Compares our numbers with MiniMind's, on tiny models that MiniMind saved together with its own results.

    python proofs/minimind_parity.py FOLDER [FOLDER ...]

Each folder holds weights.pth, expected.json (configuration, losses, gradient norms) and expected.safetensors
(input_ids, unshifted labels, logits, a greedy continuation). Prints a Markdown table.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from minimind_sft.errors import run_program
from minimind_sft.inference.generate import SamplingSettings, generate_stream
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    print("| model | logits, largest absolute difference | loss, relative | auxiliary loss, relative | "
          "gradient norms, largest relative | greedy continuation |\n|---|---|---|---|---|---|")
    for folder in parser.parse_args().folders:
        print(f"| {folder.name} | " + " | ".join(compare(folder)) + " |")


def compare(folder: Path) -> list[str]:
    """Returns the table's cells for one model."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "expected.safetensors")
    # MiniMind computes its auxiliary loss over all tokens of the batch at once.
    model = MiniMindForCausalLM(ModelConfig(**expected["config"], aux_loss_scope="batch"))
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True), strict=True)

    rows, length = tensors["input_ids"].shape
    input_ids, cu_seqlens = tensors["input_ids"].flatten(), range(0, rows * length + 1, length)
    with torch.no_grad():
        logits = model.eval().document_logits(input_ids, cu_seqlens).view_as(tensors["logits"])
    prompt, continuation = tensors["greedy_ids"][0].tolist()[:8], tensors["greedy_ids"][0].tolist()[8:]
    greedy = list(generate_stream(model, prompt, SamplingSettings(max_new_tokens=len(continuation)), ()))

    labels = torch.full((rows, length), IGNORE_INDEX)
    labels[:, :-1] = tensors["labels"][:, 1:]
    losses = model.train()(input_ids, labels.flatten(), cu_seqlens)
    loss = losses.loss_sum / (labels != IGNORE_INDEX).sum()
    aux_loss = losses.aux_loss_sum / labels.numel()
    (loss + aux_loss).backward()
    return [
        f"{float((logits - tensors['logits']).abs().max()):.1e}",
        f"{relative(float(loss.detach()), expected['train_mode_loss']):.1e}",
        f"{relative(float(aux_loss.detach()), expected['train_mode_aux_loss']):.1e}",
        f"{largest_norm_difference(model, expected['grad_norms_of_loss_plus_aux']):.1e}",
        f"{'the same' if greedy == continuation else 'differs'} ({len(continuation)} tokens)",
    ]


def largest_norm_difference(model: MiniMindForCausalLM, expected: dict[str, float]) -> float:
    """Compares gradient norms by MiniMind's names, which the experts' gradients get from the state dict's hooks."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    norms = {name: float(tensor.norm()) for name, tensor in model.state_dict().items() if name in expected}
    assert set(norms) == set(expected)
    return max(relative(norms[name], value) for name, value in expected.items())


def relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected) if expected else abs(found)


if __name__ == "__main__":
    run_program(main)
