"""Do exported files answer as eval_llm.py did? Asks transformers and llama.cpp the questions of a --score_out file.

    python eval_llm.py --weight mine --score my_eval.jsonl --score_out answers.jsonl
    python scripts/convert_model.py --weight mine --to huggingface --output my-model
    python scripts/convert_model.py --weight mine --to gguf --output my-model.gguf
    python proofs/same_answers.py answers.jsonl --folder my-model --gguf my-model.gguf

Prompts come from the exported folder alone: its tokenizer, its chat template. transformers generates from the folder;
llama.cpp tokenizes the same prompts and generates from the GGUF file. proofs/llama_cpp_judge.py says how to install it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_cpp_judge import INSTALL, ask, node_modules

from minimind_sft.evaluation.questions import without_reasoning

MAX_NEW_TOKENS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path, help="file that eval_llm.py --score_out wrote")
    parser.add_argument("--folder", type=Path, required=True, help="the model as a Hugging Face folder")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], help="the model as GGUF files")
    parser.add_argument("--max_new_tokens", type=int, default=MAX_NEW_TOKENS, help="as in eval_llm.py's command")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()

    rows = [row for row in map(json.loads, arguments.answers.read_text(encoding="utf-8").splitlines())
            if row["answer"] is not None]
    prompts, answers = by_transformers(arguments.folder, rows, arguments.max_new_tokens)
    table = [compared("eval_llm.py", [row["answer"] for row in rows], rows), compared("transformers", answers, rows)]
    for path in arguments.gguf:
        if node_modules() is None:
            print(f"{path}: not asked; {INSTALL}")
            continue
        answers = by_llama_cpp(path, arguments.folder, prompts, arguments.max_new_tokens)
        table.append(compared(f"llama.cpp, {path.name}", answers, rows))

    width = max(len(line["reader"]) for line in table)
    print(f"{'reader':<{width}}  same answer as eval_llm.py  exact match")
    for line in table:
        print(f"{line['reader']:<{width}}  {line['same']:>16} of {len(rows):<6}  {line['exact'] / len(rows):>11.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"questions": len(rows), "readers": table}, indent=1) + "\n")


def by_transformers(folder: Path, rows: Sequence[dict[str, Any]],
                    max_new_tokens: int) -> tuple[list[str], list[str]]:
    """Returns the prompts that the folder's chat template makes, and transformers' greedy answers to them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts, answers = [], []
    for row in rows:
        prompts.append(tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False,
                                                     add_generation_prompt=True, enable_thinking=False))
        ids = tokenizer(prompts[-1], add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            generated = model.generate(**ids, do_sample=False, max_new_tokens=max_new_tokens)
        answers.append(said(tokenizer, generated[0, ids["input_ids"].shape[1]:].tolist()))
    return prompts, answers


def by_llama_cpp(path: Path, folder: Path, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Returns llama.cpp's greedy answers; it tokenizes the prompts itself."""
    from transformers import AutoTokenizer

    (tokenized,) = ask([{"model": path, "tokenize": prompts, "parseSpecial": True}])
    questions = [{"ids": ids, "count": max_new_tokens} for ids in tokenized["tokenize"]]
    room = max(len(question["ids"]) for question in questions) + max_new_tokens + 1
    (answered,) = ask([{"model": path, "contextSize": room, "generate": questions}])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [said(tokenizer, ids) for ids in answered["generate"]]


def said(tokenizer: Any, ids: list[int]) -> str:
    """Returns the text of an answer as eval_llm.py --score compares it."""
    return without_reasoning(tokenizer.decode(ids, skip_special_tokens=True))


def compared(reader: str, answers: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts answers that are those of eval_llm.py, and those that match what was expected."""
    return {"reader": reader, "same": sum(one == row["answer"] for one, row in zip(answers, rows, strict=True)),
            "exact": sum(one == row["expected"] for one, row in zip(answers, rows, strict=True))}


if __name__ == "__main__":
    main()
