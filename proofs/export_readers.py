"""Exports models in every format, and compares what each reader computes from the result with what we compute.

    python proofs/export_readers.py
    python proofs/export_readers.py --weight SmolLM2-135M-Instruct.Q4_1.gguf --minimind ../minimind

Without flags: the bundled model, and tiny random models of every family. Readers: ours, transformers, llama.cpp
(llama_cpp_judge.py says how to install it), and with --minimind, a clone of its repository, MiniMind's own code. A
reader that is not installed is left out by name. Prints a Markdown table and stores it in results/export_readers.json.
"""

import argparse
import json
import re
import subprocess
import tempfile
import types
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from export_models import CONFIGS, UNNORMALISED, random_weights
from llama_cpp_judge import INSTALL, ask, node_modules

from minimind_sft.data.chat_template import make_template
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError, run_program
from minimind_sft.export import huggingface, minimind
from minimind_sft.export.check import TEXTS, compare
from minimind_sft.export.choice import choose_family
from minimind_sft.export.gguf import write_gguf
from minimind_sft.export.model import Export
from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.gguf_registry import GGUF_FAMILIES
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.loaded import Weights
from minimind_sft.model.weights import read_weights
from minimind_sft.paths import REPOSITORY

RESULTS = Path(__file__).parent / "results" / "export_readers.json"
BUNDLED = REPOSITORY / "out" / "pretrain_256.pth"
MESSAGES = ({"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Where is Paris? 12+3=?"})
GREEDY = 24
CONTEXT = 512
GENERATIONS = {"MiniMind-3": "d65ef2c", "MiniMind-2": "c090b69"}
"""Commits of MiniMind with the model of each generation."""
GGUF_DTYPES = ("float32", "float16", "bfloat16", "q8_0")

Cells = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", type=Path, action="append", default=[], metavar="PATH")
    parser.add_argument("--minimind", type=Path, metavar="CLONE")
    given = parser.parse_args()
    if find_spec("transformers"):
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    exports = {f"bundled ({BUNDLED.stem})": export_at(BUNDLED)}
    exports |= {path.stem: export_at(path) for path in given.weight}
    bundled = exports[f"bundled ({BUNDLED.stem})"]
    exports |= {f"tiny {name}": replace(bundled, weights=random_weights(config))
                for name, config in {**CONFIGS, "qwen3_moe, unnormalised": UNNORMALISED}.items()}
    rows = {}
    for name, export in exports.items():
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = judged(export, Path(folder), given.minimind)
        print(f"{name}: {rows[name]}", flush=True)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = [["model", *columns], ["---"] * (len(columns) + 1),
             *([name, *(row.get(column, "") for column in columns)] for name, row in rows.items())]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def export_at(path: Path) -> Export:
    tokenizer = load_tokenizer(None, path)
    return Export(read_weights(path), tokenizer, make_template(tokenizer), "float32")


def judged(export: Export, folder: Path, clone: Path | None) -> Cells:
    """Returns one row of the table."""
    return {**folder_cells(export, folder / "huggingface"), **gguf_cells(export, folder),
            **minimind_cells(export, folder / "x.pth", clone)}


class Ours:
    """The results of our own model: the reference for a reader of the same file."""

    def __init__(self, export: Export, weights: Weights):
        model = weights.build_model().eval()
        self.documents = [export.tokenizer.encode_ordinary(text) for text in TEXTS]
        assert export.template is not None
        self.prompt = export.template.generation_prompt_ids(list(MESSAGES))
        with torch.inference_mode():
            self.logits = [document_logits(model, ids) for ids in (*self.documents, self.prompt)]
        settings = SamplingSettings(max_new_tokens=GREEDY, temperature=0.0)
        (self.greedy,) = generate_batch(ready_to_decode(model), [self.prompt], settings, ())

    def cell(self, logits: list[torch.Tensor], greedy: list[int]) -> str:
        """Compares another reader's logits and greedy ids."""
        difference = max(float((one - other).abs().max()) for one, other in zip(logits, self.logits, strict=True))
        return f"{difference:.0e}, {'same' if greedy == self.greedy else 'other'} ids"


def document_logits(model: MiniMindForCausalLM, ids: list[int]) -> torch.Tensor:
    return model.document_logits(torch.tensor(ids), [0, len(ids)])


def folder_cells(export: Export, folder: Path) -> Cells:
    folder.mkdir()
    try:
        family = choose_family(export.weights.config, FAMILIES, export.weights.family)
    except UserError as error:
        return {"transformers, folder": refused(error)}
    huggingface.write_folder(folder, export, family)
    if not find_spec("transformers"):
        return {"transformers, folder": "not installed"}
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Ours(export, read_weights(folder))
    prompt = tokenizer.apply_chat_template(list(MESSAGES), add_generation_prompt=True, return_dict=False,
                                           enable_thinking=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = compare(export, read_weights(folder), export.tokenizer)
    return {"layout": family.name, "prompt": f"{'same' if prompt == ours.prompt else 'other'} ids",
            "ours, folder": f"{found.logit:.0e}", "transformers, folder": transformers_cell(model, ours)}


@torch.inference_mode()
def transformers_cell(model: Any, ours: Ours) -> str:
    logits = [model(torch.tensor([ids])).logits[0] for ids in (*ours.documents, ours.prompt)]
    ids = torch.tensor([ours.prompt])
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=GREEDY, do_sample=False,
                            eos_token_id=None)[0, len(ours.prompt):].tolist()
    return ours.cell(logits, greedy)


def gguf_cells(export: Export, folder: Path) -> Cells:
    try:
        family = choose_family(export.weights.config, GGUF_FAMILIES, export.weights.family)
    except UserError as error:
        return {"transformers, GGUF": refused(error), **dict.fromkeys(map(llama_column, GGUF_DTYPES), refused(error))}
    files, cells = {dtype: folder / f"{dtype}.gguf" for dtype in GGUF_DTYPES}, {}
    for dtype, path in files.items():
        write_gguf(path, replace(export, dtype=dtype), family)
    ours = {dtype: Ours(export, read_weights(path)) for dtype, path in files.items()}
    cells["transformers, GGUF"] = transformers_gguf(files["float32"], ours["float32"], folder / "huggingface")
    if node_modules() is None:
        return cells | dict.fromkeys(map(llama_column, GGUF_DTYPES), INSTALL)
    answers = ask([{"model": str(path), "contextSize": CONTEXT, "score": [*ours[dtype].documents, ours[dtype].prompt],
                    "generate": [{"ids": ours[dtype].prompt, "count": GREEDY}]} for dtype, path in files.items()])
    return cells | {llama_column(dtype): llama_cell(answer, ours[dtype], set(export.stop_ids))
                    for dtype, answer in zip(files, answers, strict=True)}


def refused(error: UserError) -> str:
    """Shortens a refusal to the field that it names."""
    fields = [name for name in ModelConfig.__dataclass_fields__ if re.search(rf"\b{name}\b", str(error))]
    return f"refused: {', '.join(fields)}"


def llama_column(dtype: str) -> str:
    return f"llama.cpp, {dtype}"


def transformers_gguf(path: Path, ours: Ours, folder: Path) -> str:
    """Loads a GGUF file with transformers; with the configuration of `folder` where it does not read all from the file.

    transformers 5.24 assumes sizes: head_dim of Qwen3, moe_intermediate_size of Qwen3-MoE, the context of GPT-2.
    """
    if not find_spec("transformers"):
        return "not installed"
    import transformers

    load = partial(transformers.AutoModelForCausalLM.from_pretrained, path.parent, gguf_file=path.name,
                   dtype=torch.float32)
    try:
        return transformers_cell(load().eval(), ours)
    except RuntimeError:  # mismatched sizes
        model = load(config=transformers.AutoConfig.from_pretrained(folder))
        return f"{transformers_cell(model.eval(), ours)}, with config.json"


def llama_cell(answer: dict[str, Any], ours: Ours, stops: set[int]) -> str:
    """Compares the most likely next token at every position, and the greedy ids up to the first stop."""
    chosen = [int(one) for logits in ours.logits for one in logits.argmax(-1)]
    theirs = [one for scores in answer["score"] for one in scores]
    same = sum(one == other for one, other in zip(chosen, theirs, strict=True))
    end = next((at for at, one in enumerate(ours.greedy) if one in stops), len(ours.greedy))
    greedy = [one for one in answer["generate"][0] if one not in stops]
    return f"{same} of {len(chosen)}, {'same' if greedy == ours.greedy[:end] else 'other'} ids"


def minimind_cells(export: Export, path: Path, clone: Path | None) -> Cells:
    """Compares with the model file of MiniMind's repository, at the commit of the generation."""
    try:
        generation = minimind.generation_of(export.weights.config)
    except UserError as error:
        return {"MiniMind": refused(error)}
    minimind.write_state_dict(path, export, {})
    if clone is None:
        return {"MiniMind": "not given"}
    config = export.weights.config
    code = subprocess.run(["git", "-C", str(clone), "show", f"{GENERATIONS[generation.name]}:model/model_minimind.py"],
                          capture_output=True, text=True, check=True, encoding="utf-8").stdout
    module = types.ModuleType(f"minimind_{generation.name[-1]}")
    exec(compile(code, "model_minimind.py", "exec"), module.__dict__)
    theirs = module.MiniMindForCausalLM(module.MiniMindConfig(
        hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers, use_moe=config.use_moe,
        **minimind.arguments_of(config))).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    ours = Ours(export, read_weights(path))
    with torch.inference_mode():
        logits = [theirs(torch.tensor([ids])).logits[0] for ids in (*ours.documents, ours.prompt)]
        ids = list(ours.prompt)
        for _ in range(GREEDY):
            ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
    return {"MiniMind": ours.cell(logits, ids[len(ours.prompt):])}


if __name__ == "__main__":
    run_program(main)
