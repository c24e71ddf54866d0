"""Merges adapters into the weights that they were trained on, and writes ordinary weights.

    python scripts/merge_lora.py --weight full_sft --lora_weight style --save_weight chat
    python scripts/merge_lora.py --weight ./SmolLM2 --lora_weight style:0.5 calls --save_weight mixed

Writes <save_dir>/<save_weight>_<hidden_size>[_moe].pth with a sidecar that says what was merged. The merged model must
compute the same as the unmerged one; nothing is written if it does not. Adapters of this project, of PEFT and of
MiniMind can be merged.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError, run_program
from minimind_sft.export.check import documents
from minimind_sft.files import resolved
from minimind_sft.matching import base_notices, check_adapters, check_template, check_tokenizer, encoding_facts
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.merging import history, merge
from minimind_sft.model.adapters.reading import read_adapters
from minimind_sft.model.build import check_shape
from minimind_sft.model.finding import find_weights
from minimind_sft.model.loaded import Weights
from minimind_sft.model.sidecar import sidecar_path
from minimind_sft.model.weights import read_weights, weights_path, write_weights
from minimind_sft.paths import place, program, shown
from minimind_sft.set_aside import check_replaceable, is_there, previous_name, set_aside
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.convert import ChosenWeights
from minimind_sft.settings.merge import MergeSettings
from minimind_sft.terminal import counted, say, say_all
from minimind_sft.training.checkpoint import lock_of
from minimind_sft.training.outputs import Outputs
from minimind_sft.writing import check_writable


def main() -> None:
    settings = parse_flags(MergeSettings, description=__doc__)
    chosen, output = settings.weights, settings.output
    weights, tokenizer = load(chosen)
    adapters = read_adapters(settings.adapters.lora_weight, chosen.save_dir, weights, "--lora_weight")
    for adapter, weight in adapters:
        say_all("adapter", (f"{adapter.path}: {counted(len(adapter.changes), 'projection')}, weight {weight:g}",
                            *adapter.notices, *base_notices(adapter, "none")))
    template = template_of(chosen, weights, tokenizer)
    check_adapters([adapter for adapter, _ in adapters], weights, tokenizer, template, chosen.chat_template,
                   chosen.end_of_turn)
    path = weights_path(chosen.save_dir, output.save_weight, weights.config)
    with claimed_output(path, weights.path, output.overwrite):
        merged = merge(weights, adapters, documents(tokenizer))
        say(f"{'check':<12}merged and unmerged logits differ by at most {merged.difference:.1e} (the largest is "
            f"{merged.largest:.3g})")
        facts = encoding_facts(tokenizer, template, chosen.chat_template)
        sidecar = {"stage": "merged", "family": weights.family, **facts, **training_of(adapters),
                   "merged": history(weights, adapters)}
        if there := [one for one in (path, sidecar_path(path)) if is_there(one)]:
            set_aside(there, previous_name(path.with_suffix("")))
        write_weights(path, merged.model, output.save_dtype, sidecar)
    say(f"{shown(path)}: {path.stat().st_size / 1e6:,.1f} MB, {output.save_dtype}")
    say(f"Chat with it: python {shlex.quote(program('eval_llm.py'))} --weight {shlex.quote(place(path))}")


def load(chosen: ChosenWeights) -> tuple[Weights, Tokenizer]:
    """Finds and reads the weights, with the tokenizer that belongs to them.

    Raises:
        UserError: if they do not belong together.
    """
    path = find_weights(chosen.weight, chosen.save_dir, flag="--weight", hidden_size=chosen.hidden_size,
                        use_moe=chosen.use_moe, tokenizer=lambda: load_tokenizer(chosen.tokenizer_path).fingerprint)
    tokenizer = load_tokenizer(chosen.tokenizer_path, path)
    weights = read_weights(path)
    check_shape(chosen, weights.config, path)
    say_all("tokenizer", tokenizer.notices)
    say_all("weights", (*weights.notices, *check_tokenizer(weights, tokenizer, chosen.tokenizer_path)))
    return weights, tokenizer


def template_of(chosen: ChosenWeights, weights: Weights, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Returns the chat template of the merged weights; None for a tokenizer without one, as base models have."""
    if not (chosen.chat_template or tokenizer.chat_template or tokenizer.named_templates):
        return None
    template = make_template(tokenizer, chosen.chat_template, chosen.end_of_turn)
    check_template(weights, template, chosen.chat_template, chosen.end_of_turn)
    say_all("template", template.notes)
    return template


@contextmanager
def claimed_output(path: Path, source: Path, overwrite: bool) -> Iterator[None]:
    """Holds the lock that a training run which writes to `path` would hold.

    Raises:
        UserError: if the merged weights cannot be written to `path`, or another process writes there.
    """
    if resolved(path) == resolved(source):
        raise UserError(f"--save_weight: {path} is what --weight names; choose another name")
    check_writable(path.parent, "--save_dir")
    states = Outputs(path).states
    check_writable(states.parent, "--save_dir")
    lock = lock_of(states)
    lock.take()
    try:
        check_replaceable([path, sidecar_path(path)], overwrite, "choose another --save_weight",
                          previous_name(path.with_suffix("")))
        yield
    finally:
        lock.release()


def training_of(adapters: list[tuple[Adapter, float]]) -> dict[str, Any]:
    """Returns what the sidecar says about training: the run of the one adapter; nothing describes a mix of several."""
    (sidecar, *others) = [adapter.sidecar or {} for adapter, _ in adapters]
    return {"training": sidecar["training"]} if "training" in sidecar and not others else {}


if __name__ == "__main__":
    run_program(main)
