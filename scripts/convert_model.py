"""Writes weights, or an adapter, in another program's format, reads them back, and compares.

    python scripts/convert_model.py --weight full_sft --to huggingface --output minimind-3
    python scripts/convert_model.py --weight full_sft --to gguf --dtype q8_0 --output full_sft.gguf
    python scripts/convert_model.py --weight ../Qwen3-0.6B --to gguf --output qwen3.gguf
    python scripts/convert_model.py --weight ./minimind-3 --to minimind --output out/full_sft_768.pth
    python scripts/convert_model.py --weight full_sft --lora_weight style --to peft --output style-peft

--to huggingface writes a folder for transformers, vLLM and whatever else reads that format; --to gguf a file for
llama.cpp, with a Modelfile for Ollama; --to minimind a .pth for MiniMind's own programs. The tokenizer and chat
template of the weights go along. With --lora_weight the adapter is written and not its weights: --to peft as a folder
for PEFT, --to minimind as a .pth. Nothing is left if the copy does not compute the same. docs/export.md explains it.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import BUNDLED, FOLDER, load_tokenizer
from minimind_sft.errors import UserError, run_program
from minimind_sft.export import huggingface, minimind
from minimind_sft.export.adapters import compare_adapters
from minimind_sft.export.check import compare
from minimind_sft.export.choice import choose_family
from minimind_sft.export.gguf import write_gguf
from minimind_sft.export.gguf_tokens import tokenizer_metadata
from minimind_sft.export.model import Export, stored_dtype
from minimind_sft.export.modelfile import modelfile
from minimind_sft.export.staging import check_apart, check_output, staged
from minimind_sft.inference.stopping import named_stop_ids
from minimind_sft.matching import check_template, check_tokenizer, encoding_facts
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.minimind import write_minimind
from minimind_sft.model.adapters.peft import write_peft
from minimind_sft.model.adapters.reading import read_adapter, read_adapters
from minimind_sft.model.build import check_shape
from minimind_sft.model.families.gguf_registry import GGUF_FAMILIES
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.finding import find_weights
from minimind_sft.model.weights import Weights, read_weights
from minimind_sft.paths import place, program
from minimind_sft.settings.chat import CHAT_SAMPLING
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.convert import ConvertedWeights, ConvertModelSettings
from minimind_sft.terminal import counted, say, say_all
from minimind_sft.writing import create_text

NO_FLAGS = ("what to convert, and to what? MiniMind's script of this name has the paths in its code; here flags name "
            "them, for example: python scripts/convert_model.py --weight full_sft --to huggingface --output minimind-3 "
            "(--help lists all flags)")
QUESTION = "Who are you?"


@dataclass(frozen=True)
class Plan:
    """A way to write one format.

    files: the files to write; empty if the output is a folder.
    write: writes them, under their names, into the folder it is called with.
    form: the format in words.
    next_steps: lines that say how to use the output.
    """

    files: list[Path]
    write: Callable[[Path], object]
    form: str
    next_steps: list[str]


def main() -> None:
    if len(sys.argv) == 1:
        raise UserError(NO_FLAGS)
    settings = parse_flags(ConvertModelSettings, description=__doc__)
    if settings.weights.lora_weight is not None:
        convert_adapter(settings)
        return
    chosen, output = settings.weights, Path(settings.output.output)
    weights, tokenizer, template = load(chosen)
    export = Export(weights, tokenizer, template, settings.output.dtype or default_dtype(settings.output.to, weights),
                    named_stop_ids(weights.path, tokenizer))
    plan = PLANS[settings.output.to](export, chosen, output)
    check_apart(output, weights.path)
    check_output(output, plan.files, settings.output.overwrite)

    layers = counted(weights.config.num_hidden_layers, "layer")
    say(f"{'weights':<12}{weights.path}: {weights.config.hidden_size} x {layers}")
    write(plan, output, export.dtype,
          lambda written: compare(export, read_weights(written), read_tokenizer(written, tokenizer)))


def convert_adapter(settings: ConvertModelSettings) -> None:
    """Writes an adapter in another program's format, reads it back, and compares."""
    chosen, output = settings.weights, Path(settings.output.output)
    weights = read_weights(path_of(chosen))
    check_shape(chosen, weights.config, weights.path)
    say_all("weights", weights.notices)
    ((adapter, weight),) = read_adapters([chosen.lora_weight or ""], chosen.save_dir, weights, "--lora_weight")
    if weight != 1:
        raise UserError(f"--lora_weight {chosen.lora_weight}: an adapter is converted as it is, without a weight")
    say_all("adapter", adapter.notices)
    dtype = settings.output.dtype or ("float16" if settings.output.to == "minimind" else stored_dtype_of(adapter))
    plan = ADAPTER_PLANS[settings.output.to](adapter, weights, output, dtype)
    check_apart(output, weights.path)
    check_apart(output, adapter.path, "--lora_weight")
    check_output(output, plan.files, settings.output.overwrite)

    say(f"{'adapter':<12}{adapter.path}: {counted(len(adapter.changes), 'projection')}")
    write(plan, output, dtype,
          lambda written: compare_adapters(adapter, read_adapter(written, weights.config), dtype))


def write(plan: Plan, output: Path, dtype: str, compared: Callable[[Path], object]) -> None:
    """Writes the output, unless what is read back differs, and says how to use it.

    Args:
        compared: reads what was written, and describes how it differs; raises UserError if it differs too much.
    """
    say(f"{'writing':<12}{plan.form}, {dtype}")
    with staged(output, plan.files) as folder:
        plan.write(folder)
        differences = compared(folder / plan.files[0].name if plan.files else folder)
    say(f"{'read back':<12}{differences}")
    say(f"{output}: {sizes(plan.files or sorted(output.iterdir()))}")
    for line in plan.next_steps:
        say(line)


def path_of(chosen: ConvertedWeights) -> Path:
    """Finds the weights."""
    return find_weights(chosen.weight, chosen.save_dir, flag="--weight", hidden_size=chosen.hidden_size,
                        use_moe=chosen.use_moe, tokenizer=lambda: load_tokenizer(chosen.tokenizer_path).fingerprint)


def load(chosen: ConvertedWeights) -> tuple[Weights, Tokenizer, ChatTemplate | None]:
    """Finds and reads the weights, with the tokenizer and chat template that belong to them.

    Raises:
        UserError: if they do not belong together.
    """
    path = path_of(chosen)
    tokenizer = load_tokenizer(chosen.tokenizer_path, path)
    weights = read_weights(path)
    check_shape(chosen, weights.config, path)
    say_all("tokenizer", tokenizer.notices)
    say_all("weights", (*weights.notices, *check_tokenizer(weights, tokenizer, chosen.tokenizer_path)))
    return weights, tokenizer, template_of(chosen, weights, tokenizer)


def template_of(chosen: ConvertedWeights, weights: Weights, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Returns the chat template that the weights were trained with; None for weights that have seen no chats."""
    if chosen.chat_template is None:
        if (weights.sidecar or {}).get("stage") == "pretrain":
            say_all("template", ["none, as the weights have only been pretrained; --chat_template chatml adds one"])
            return None
        if tokenizer.chat_template is None and not tokenizer.named_templates:
            return None
    template = make_template(tokenizer, chosen.chat_template, chosen.end_of_turn)
    check_template(weights, template, chosen.chat_template, chosen.end_of_turn)
    say_all("template", template.notes)
    return template


def default_dtype(to: str, weights: Weights) -> str:
    return "float16" if to == "minimind" else stored_dtype(weights)


def plan_huggingface(export: Export, _: ConvertedWeights, output: Path) -> Plan:
    """Plans a Hugging Face folder in the layout of the weights' own family, or of the first that can hold them."""
    family = choose_family(export.weights.config, FAMILIES, export.weights.family)
    asked = (f"tokenizer.apply_chat_template([{{'role': 'user', 'content': '{QUESTION}'}}], "
             "add_generation_prompt=True, return_tensors='pt', return_dict=True)" if export.template else
             f"tokenizer('{QUESTION}', return_tensors='pt')")
    return Plan([], partial(huggingface.write_folder, export=export, family=family),
                f"a Hugging Face folder in the layout of {family.name}",
                ["Use it with transformers:",
                 "from transformers import AutoModelForCausalLM, AutoTokenizer",
                 f"tokenizer = AutoTokenizer.from_pretrained({str(output)!r})",
                 f"model = AutoModelForCausalLM.from_pretrained({str(output)!r})",
                 f"prompt = {asked}",
                 "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))",
                 f"or here: {eval_command(output)}"])


def plan_minimind(export: Export, chosen: ConvertedWeights, output: Path) -> Plan:
    """Plans MiniMind's .pth and a sidecar, which MiniMind ignores."""
    generation = minimind.generation_of(export.weights.config)
    facts = encoding_facts(export.tokenizer, export.template, chosen.chat_template)
    tokenizer = FOLDER if export.tokenizer.name == BUNDLED else Path(export.tokenizer.name)
    return Plan([output, output.with_suffix(".json")],
                lambda folder: minimind.write_state_dict(folder / output.name, export, facts),
                f"a state dict of {generation.name}",
                [*minimind.next_steps(export.weights.config, output, tokenizer),
                 f"or here: {eval_command(output)}"])


def plan_gguf(export: Export, _: ConvertedWeights, output: Path) -> Plan:
    """Plans a GGUF file and a Modelfile for Ollama."""
    try:
        family = choose_family(export.weights.config, GGUF_FAMILIES, None)
    except UserError as error:
        raise UserError(f"--to gguf: {error}; --to huggingface says more about a model") from error
    tokenizer_metadata(export)  # refuses a tokenizer that llama.cpp does not have before anything is written
    model, ollama = output, output.with_suffix(".Modelfile")

    def write(folder: Path) -> None:
        write_gguf(folder / model.name, export, family)
        text = modelfile(export, model.name, CHAT_SAMPLING)
        create_text(folder / ollama.name, text)

    return Plan([model, ollama], write, f"a GGUF file of the architecture {family.name}",
                [f"Use it with llama.cpp: llama-cli -m {shlex.quote(str(model))}",
                 f"with Ollama: ollama create {shlex.quote(model.stem)} -f {shlex.quote(str(ollama))}",
                 f"or here: {eval_command(output)}"])


PLANS: dict[str, Callable[[Export, ConvertedWeights, Path], Plan]] = {
    "huggingface": plan_huggingface, "gguf": plan_gguf, "minimind": plan_minimind}


def plan_peft(adapter: Adapter, weights: Weights, output: Path, dtype: str) -> Plan:
    """Plans PEFT's folder, with the names of the family in whose format the weights can be written."""
    family = choose_family(weights.config, FAMILIES, weights.family)
    base = str(weights.path) if weights.path.is_dir() else None
    lines = [] if base else [
        f"Its base model as a folder: python {shlex.quote(program('scripts/convert_model.py'))} --weight "
        f"{shlex.quote(place(weights.path))} --to huggingface --output base"]
    return Plan([], lambda folder: write_peft(folder, adapter, family, weights.config, base, dtype),
                f"an adapter of PEFT for a model of {family.name}",
                [*lines, "Use it with PEFT:",
                 "from peft import PeftModel",
                 "from transformers import AutoModelForCausalLM",
                 f"base = AutoModelForCausalLM.from_pretrained({base or 'base'!r})",
                 f"model = PeftModel.from_pretrained(base, {str(output)!r})",
                 f"or here: {eval_command(weights.path)} --lora_weight {shlex.quote(as_path(output))}"])


def plan_minimind_adapter(adapter: Adapter, weights: Weights, output: Path, dtype: str) -> Plan:
    """Plans MiniMind's .pth of an adapter."""
    config = weights.config
    generation = minimind.generation_of(config)
    ending = f"_{config.hidden_size}"
    lines = [] if output.stem.endswith(ending) else [
        f"MiniMind's programs look for NAME{ending}.pth: rename the file to {output.stem}{ending}.pth"]
    return Plan([output], lambda folder: write_minimind(folder / output.name, adapter, config, dtype),
                f"an adapter of {generation.name}",
                [*lines, f"Use it in a clone of {generation.name}, in the folder of its weights:",
                 f"    python eval_llm.py --lora_weight {output.stem.removesuffix(ending)}",
                 f"or here: {eval_command(weights.path)} --lora_weight {shlex.quote(as_path(output))}"])


ADAPTER_PLANS: dict[str, Callable[[Adapter, Weights, Path, str], Plan]] = {
    "peft": plan_peft, "minimind": plan_minimind_adapter}


def stored_dtype_of(adapter: Adapter) -> str:
    """Returns the dtype in which an adapter of this project is stored; float32 for any other."""
    dtype = (adapter.sidecar or {}).get("dtype")
    return dtype if dtype in ("float16", "bfloat16") else "float32"


def read_tokenizer(written: Path, tokenizer: Tokenizer) -> Tokenizer:
    """Reads the tokenizer that was written along; MiniMind's file has none."""
    if written.is_dir():
        return Tokenizer.from_folder(written)
    return Tokenizer.from_gguf(written) if written.suffix == ".gguf" else tokenizer


def eval_command(output: Path) -> str:
    return f"python {shlex.quote(program('eval_llm.py'))} --weight {shlex.quote(as_path(output))}"


def as_path(output: Path) -> str:
    """Names a file or folder for a command; a bare name would be one of the files in --save_dir."""
    path = place(output)
    return f"./{path}" if not output.suffix and Path(path).name == path else path


def sizes(files: list[Path]) -> str:
    """Lists files with their sizes."""
    return ", ".join(f"{path.name} {_size(path.stat().st_size)}" for path in files if path.is_file())


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} KB"


if __name__ == "__main__":
    run_program(main)
