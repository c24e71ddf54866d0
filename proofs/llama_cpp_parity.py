"""Compares our numbers with llama.cpp's, on GGUF files that we write.

    cd proofs/llama_cpp && npm install --ignore-scripts      # once
    python proofs/llama_cpp_parity.py --base SmolLM2.gguf --tokenizer FOLDER

Two comparisons. Ids: 1,000 mixed lines (prose in two languages, code, JSON, random characters of many scripts) through
each tokenizer. Greedy answers: llama.cpp's for each file and dtype, and ours with the weights read back from that file,
in float32. llama.cpp rounds activations to the dtype of the matrices, to 8 bits for quantised ones, so two tokens of
nearly equal score can change places; where answers part, the table says by how much ours preferred its own token. The
rows "q8_0, then float32" have the weights of the q8_0 file in float32: without that rounding, answers are equal.

The bundled weights and a random model of each architecture are always compared; --base adds GGUF files, Hugging Face
folders or .pth files, --tokenizer tokenizers alone, --text more lines. The results go to proofs/results.
"""

import argparse
import json
import random
import tempfile
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from llama_cpp_judge import HERE, ask

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import brings_tokenizer, load_tokenizer, read_tokenizer
from minimind_sft.errors import run_program
from minimind_sft.export.choice import choose_family
from minimind_sft.export.gguf import write_gguf
from minimind_sft.export.gguf_tokens import tokenizer_metadata
from minimind_sft.export.model import Export
from minimind_sft.gguf_file import is_gguf
from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.gguf_registry import GGUF_FAMILIES
from minimind_sft.model.families.tensor_shapes import tensor_shapes
from minimind_sft.model.loaded import Weights
from minimind_sft.model.weights import read_weights
from minimind_sft.paths import REPOSITORY

RESULTS = Path(__file__).resolve().parent / "results" / "llama_cpp_parity.json"
LINES, MAX_CHARACTERS = 1000, 2000
NEW_TOKENS = 48
WIDENED, AS_IT_IS = "q8_0, then float32", "as it is"
DTYPES = ("float32", "float16", "q8_0", WIDENED)
QUESTIONS = (
    "What is the capital of France?", "Who are you?", "Write a haiku about the sea.", "What is 12 times 12?",
    "Give me three tips for staying healthy.", "Explain photosynthesis in one sentence.", "Name three primary colours.",
    "Write a short email that declines an invitation.", "Why is the sky blue?", "List the planets of the solar system.",
    "What does HTTP stand for?", "Translate 'good morning' into French.", "Tell me a story about a fox.",
    "Write a Python function that reverses a string.", "def fibonacci(n):", "What is the opposite of 'hot'?",
    "中国的首都是哪里？", "你是谁？", "请用一句话介绍长城。", "写一首关于春天的诗。",
)
SCRIPTS = ((0x20, 0x7F), (0x20, 0x7F), (0xA1, 0x17F), (0x391, 0x3CA), (0x410, 0x450), (0x5D0, 0x5EB), (0x627, 0x64B),
           (0x905, 0x93A), (0xE01, 0xE2F), (0x3041, 0x3097), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4), (0x1F600, 0x1F64F))
"""Ranges of assigned characters, without combining marks."""

_QWEN3 = ModelConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                     intermediate_size=96, max_position_embeddings=512)
_LLAMA = replace(_QWEN3, qk_norm=False, head_dim=16, rope_theta=1e4, rms_norm_eps=1e-5)
RANDOM = {
    "qwen3": _QWEN3,
    "qwen3moe": replace(_QWEN3, use_moe=True, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32,
                        norm_topk_prob=True),
    "qwen2": replace(_LLAMA, attention_bias="qkv"),
    "llama": replace(_LLAMA, tie_word_embeddings=False),
    "llama, llama3 scaling": replace(_LLAMA, rope_scaling=RopeScaling("llama3", 8.0, 32)),
    "llama, linear scaling": replace(_LLAMA, rope_scaling=RopeScaling("linear", 4.0)),
    "qwen3, YaRN": replace(_QWEN3, rope_scaling=RopeScaling("yarn", 4.0, 16)),
    "smollm3": replace(_LLAMA, num_hidden_layers=4, layers_without_rope=(3,)),
    "gpt2": replace(_LLAMA, num_key_value_heads=4, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu",
                    positions="learned"),
}
"""By architecture, and RoPE scaling that the prompts exceed."""


@dataclass(frozen=True)
class Model:
    """A model to compare, and the prompts that it gets as ids."""

    name: str
    weights: Weights
    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompts: list[list[int]]


@dataclass(frozen=True)
class Parting:
    """The place where an answer of llama.cpp leaves ours.

    gap: by how much our logit of our token exceeds that of llama.cpp's token; `deviation` is that of all logits there.
    """

    prompt: int
    token: int
    gap: float
    deviation: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, what in (("--base", "weights with a tokenizer"), ("--tokenizer", "tokenizer folder or GGUF file"),
                       ("--text", "file with more lines")):
        parser.add_argument(flag, nargs="*", type=Path, default=[], metavar="PATH", help=what)
    arguments = parser.parse_args()
    bases = [load(path) for path in arguments.base]
    bundled = load(REPOSITORY / "out" / "pretrain_256.pth")
    tokenizers = {"bundled": bundled.tokenizer, **{model.name: model.tokenizer for model in bases},
                  **{path.name: read_tokenizer(path) for path in arguments.tokenizer}}
    version = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]["node-llama-cpp"]
    result: dict[str, Any] = {"node-llama-cpp": version, "tokenizers": [], "greedy": []}

    print("| tokenizer | pre-tokenizer | lines | equal ids |\n|---|---|---|---|")
    lines = mixed_lines(arguments.text)
    for name, tokenizer in tokenizers.items():
        result["tokenizers"].append(row := compare_ids(name, tokenizer, lines))
        print(f"| {name} | {row['pre']} | {row['lines']} | {row['equal']} |", flush=True)

    print("\n| model | dtype | answers | equal | parted at token: gap (deviation of logits) |\n|---|---|---|---|---|")
    random_models = [random_model(name, config, bundled.tokenizer) for name, config in RANDOM.items()]
    for model in (*random_models, bundled, *bases):
        for dtype in (*DTYPES, AS_IT_IS) if is_gguf(model.weights.path) else DTYPES:
            result["greedy"].append(row := compare_answers(model, dtype))
            parted = ", ".join(f"{one['token']}: {one['gap']:.3f} ({one['deviation']:.1f})" for one in row["parted"])
            print(f"| {model.name} | {dtype} | {row['answers']} | {row['equal']} | {parted} |", flush=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Model:
    """Reads weights with their tokenizer; the bundled one for our own files."""
    tokenizer = load_tokenizer(None, path if brings_tokenizer(path) else None)
    template = make_template(tokenizer) if tokenizer.chat_template else None
    prompts = [tokenizer.encode_ordinary(question) if template is None else
               template.generation_prompt_ids([{"role": "user", "content": question}]) for question in QUESTIONS]
    return Model(path.stem, read_weights(path), tokenizer, template, prompts)


def random_model(name: str, config: ModelConfig, tokenizer: Tokenizer) -> Model:
    """Returns a random model with clear preferences, and random prompts."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(float(parameter.dim() == 1 and parameter_name.endswith("weight")), 0.2)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in tensor_shapes(config)}
    prompts = torch.randint(3, config.vocab_size, (4, 40)).tolist()
    return Model(f"random {name}", Weights(Path("random"), config, tensors, None), tokenizer, None, prompts)


def mixed_lines(more: list[Path]) -> list[str]:
    """Returns lines of prose, code and data, of more files, and of random characters, in equal parts."""
    sources = [[REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))], [REPOSITORY / "README_zh.md"],
               sorted(REPOSITORY.glob("minimind_sft/**/*.py")), sorted(REPOSITORY.glob("dataset/*.jsonl")), more]
    chooser = random.Random(0)
    parts = [["".join(chr(chooser.randrange(*chooser.choice(SCRIPTS))) for _ in range(chooser.randrange(1, 60)))
              for _ in range(LINES)]]
    for paths in filter(None, sources):
        text = (line[:MAX_CHARACTERS] for path in paths for line in path.read_text(encoding="utf-8").splitlines())
        found = list(dict.fromkeys(line for line in text if line.strip()))
        chooser.shuffle(found)
        parts.append(found)
    mixed = [part[index] for index in range(LINES) for part in parts if index < len(part)]
    return mixed[:LINES]


def compare_ids(name: str, tokenizer: Tokenizer, lines: list[str]) -> dict[str, Any]:
    """Compares ids, control tokens that a line spells included."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, intermediate_size=32)
    weights = Weights(Path("random"), config, MiniMindForCausalLM(config).state_dict(), None)
    export = Export(weights, tokenizer, None, "float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, export, choose_family(config, GGUF_FAMILIES, None))
        (answer,) = ask([{"model": path, "tokenize": lines, "parseSpecial": True}])
    differs = [line for line, ids in zip(lines, answer["tokenize"], strict=True) if ids != tokenizer.encode(line)]
    return {"tokenizer": name, "pre": tokenizer_metadata(export)["tokenizer.ggml.pre"], "lines": len(lines),
            "equal": len(lines) - len(differs), "differs": differs[:20]}


def compare_answers(model: Model, dtype: str) -> dict[str, Any]:
    """Compares greedy answers; both sides have the weights of one GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        path, weights = model.weights.path, model.weights
        for one in dtype.split(", then ") if dtype != AS_IT_IS else ():
            path = Path(folder) / f"{one}.gguf"
            write_gguf(path, Export(weights, model.tokenizer, model.template, one),
                       choose_family(weights.config, GGUF_FAMILIES, None))
            weights = read_weights(path)
        (answer,) = ask([{"model": path, "contextSize": max(map(len, model.prompts)) + NEW_TOKENS + 1,
                          "generate": [{"ids": prompt, "count": NEW_TOKENS} for prompt in model.prompts]}])
        ours = read_weights(path).build_model().eval()
    answers = generate_batch(ours, model.prompts, SamplingSettings(max_new_tokens=NEW_TOKENS), ())
    parted = [parting for index, (mine, theirs) in enumerate(zip(answers, answer["generate"], strict=True))
              if (parting := part(ours, index, model.prompts[index], mine, theirs)) is not None]
    return {"model": model.name, "dtype": dtype, "answers": len(answers), "equal": len(answers) - len(parted),
            "tokens": sum(map(len, answer["generate"])), "parted": [asdict(one) for one in parted]}


def part(model: MiniMindForCausalLM, index: int, prompt: list[int], ours: list[int],
         theirs: list[int]) -> Parting | None:
    """Returns where two answers part; None if they do not. Theirs may end early, at a token that ends a text."""
    same = [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))]
    if len(same) == len(theirs):
        return None
    ids = torch.tensor(prompt + same)
    with torch.inference_mode():
        logits = model.document_logits(ids, [0, len(ids)])[-1]
    gap = logits[ours[len(same)]] - logits[theirs[len(same)]]
    return Parting(index, len(same), round(float(gap), 4), round(float(logits.std()), 2))


if __name__ == "__main__":
    run_program(main)
