"""Evaluates a model: on conversations, on multiple-choice questions, and on plain text.

    python scripts/evaluate.py --weight full_sft --data_path dataset/sft_demo_heldout.jsonl --out results.json
    python scripts/evaluate.py --weight ./SmolLM2 --lora_weight calls --data_path calls.jsonl --out calls.json
    python scripts/evaluate.py --weight full_sft --choices 'test/*.csv' --few_shot 5 --few_shot_path 'dev/*.csv'
    python scripts/evaluate.py --weight full_sft --text_path book.txt
    python scripts/evaluate.py --weight full_sft --against pretrain --data_path dataset/sft_demo_heldout.jsonl

Prints tables. With --against it compares two models on the same rows, and with --blind you vote between their answers.
With --out it writes all results as JSON, and every answer beside it as soon as it is given; after an interruption, the
same command continues from there.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError, run_program
from minimind_sft.evaluation.blind import take_votes
from minimind_sft.evaluation.choices import evaluate_choices
from minimind_sft.evaluation.comparing import compare_choices, compare_items
from minimind_sft.evaluation.conversations import evaluate_conversations
from minimind_sft.evaluation.items import Item
from minimind_sft.evaluation.plain_text import evaluate_texts
from minimind_sft.evaluation.results import (
    Candidate,
    Outcome,
    Store,
    answers_path,
    machine_facts,
    open_store,
    write_results,
)
from minimind_sft.files import resolved
from minimind_sft.inference.loading import load
from minimind_sft.paths import program, shown
from minimind_sft.settings.chat import WeightSettings
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.evaluate import EvaluateSettings
from minimind_sft.settings.spec import as_typed
from minimind_sft.terminal import counted, say


def main() -> None:
    settings = parse_flags(EvaluateSettings, description=__doc__)
    began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    check_files(settings)
    out = settings.results.out
    store = open_store(out, settings.results.overwrite)
    if store.items:
        say(f"{'resumed':<12}{counted(store.items, 'finished item')} in {shown(store.path)}")
    results: dict[str, Any] = {"command": command(), "started": started, "settings": as_typed(settings),
                               "machine": machine_facts()}
    try:
        if settings.comparison.against:
            results |= evaluate_both(settings, store)
        else:
            results |= evaluate_model(settings, settings.weights, store, say)[0]
    except (KeyboardInterrupt, SystemExit):
        if out:
            without = " without --overwrite" * settings.results.overwrite
            say(f"{counted(store.items, 'finished item')} in {shown(store.path)}; the same command{without} continues "
                "from there")
        raise
    except UserError:
        store.abandon()
        raise
    if out:
        write_results(Path(out), {**results, "seconds": round(time.monotonic() - began, 3)})
        say(f"results: {shown(out)}, answers: {shown(store.path)}")
    store.close()


def evaluate_model(settings: EvaluateSettings, chosen: WeightSettings, store: Store, show: Callable[[str], None],
                   flags: tuple[str, str] = ("--weight", "--lora_weight")) -> tuple[dict[str, Any], list[Item]]:
    """Evaluates a model, which is gone from memory afterwards; returns results, and the items to compare.

    Args:
        flags: those that name the weights and the adapters.
    """
    loaded = load(chosen, settings.runtime, say, needs_template=bool(settings.conversations.data_path), flags=flags)
    candidate = Candidate.of(loaded, settings.runtime)
    results: dict[str, Any] = {"model": candidate.facts}
    items: list[Item] = []
    if settings.comparison.against:  # else there is only one model
        show(f"\n{flags[0]} {shown(loaded.path)}")
    for name, evaluate in tasks(settings):
        outcome = evaluate(candidate, store=store)
        results[name] = outcome.result
        items += outcome.items
        for line in outcome.lines:
            show(line)
    return results, items


def evaluate_both(settings: EvaluateSettings, store: Store) -> dict[str, Any]:
    """Evaluates --weight and --against, takes votes between their answers if asked to, and compares them."""
    comparison, store_of_other = settings.comparison, store.of("--against")
    held: list[str] = []
    show = held.append if comparison.blind else say  # the tables tell whose the answers are
    chosen = replace(settings.weights, weight=comparison.against, lora_weight=comparison.against_lora)
    results, items = evaluate_model(settings, settings.weights, store, show)
    results["against"], others = evaluate_model(settings, chosen, store_of_other, show, ("--against", "--against_lora"))
    if comparison.blind:
        results["votes"] = tell(take_votes(others, items, store, comparison.comparison_seed, input, say))
        for line in held:
            say(line)
    if items:
        same_tokens = all(results["model"][name] == results["against"]["model"][name]
                          for name in ("tokenizer", "chat_template"))
        if not same_tokens:
            say("the models have different tokenizers or chat templates: losses per token are not compared")
        results["comparison"] = tell(compare_items(others, items, same_tokens, comparison.comparison_seed,
                                                   shutil.get_terminal_size().columns))
    if settings.choices.choices:
        results["choice_comparison"] = tell(compare_choices(
            store_of_other.finished("choices"), store.finished("choices"), comparison.comparison_seed))
    return results


def tell(outcome: Outcome) -> dict[str, Any]:
    """Prints an outcome's lines after an empty one, and returns its result."""
    for line in ("", *outcome.lines):
        say(line)
    return outcome.result


def check_files(settings: EvaluateSettings) -> None:
    """Checks the files that the settings name, before anything is loaded.

    Raises:
        UserError: if nothing is given to evaluate on, a file is missing, or --out would replace one.
    """
    given = {"--data_path": settings.conversations.data_path, "--choices": settings.choices.choices,
             "--text_path": settings.texts.text_path, "--few_shot_path": settings.choices.few_shot_path}
    if not any(given.values()):
        raise UserError("expected files to evaluate on: --data_path, --choices or --text_path")
    out = Path(settings.results.out) if settings.results.out else None
    replaced = {resolved(path) for path in (out, answers_path(out))} if out else set()
    for flag, patterns in given.items():
        for file in find_files(patterns, flag):
            if resolved(file) in replaced:
                raise UserError(f"--out {out}: {file} of {flag} is where the results or answers would go")


def tasks(settings: EvaluateSettings) -> Iterator[tuple[str, Callable[..., Outcome]]]:
    """Yields the tasks that the settings ask for, by their names in the results."""
    if settings.conversations.data_path:
        yield "conversations", partial(evaluate_conversations, settings=settings.conversations)
    if settings.choices.choices:
        yield "choices", partial(evaluate_choices, settings=settings.choices)
    if settings.texts.text_path:
        yield "texts", partial(evaluate_texts, settings=settings.texts)


def command() -> str:
    """Returns the command line, as one can paste it."""
    return shlex.join(["python", program("scripts/evaluate.py"), *sys.argv[1:]])


if __name__ == "__main__":
    run_program(main)
