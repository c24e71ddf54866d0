"""Write the bundled demo data: a bilingual pretraining text, SFT conversations and a held-out set.

    python dataset/make_demo.py

The same seed gives the same bytes on every machine. What the rows say is in dataset/demo/, one module per
family of kinds; this file divides them into training and held-out rows and writes them.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from demo import arithmetic, exercises, knowledge, lists, numbers, stories, talk, turns, units
from demo.common import LANGUAGES, Dice, Question

HERE = Path(__file__).resolve().parent
HELD_OUT_PER_KIND = 35
THINKING_PER_LANGUAGE = 90

# kind -> (its questions in one language, training rows per language)
KINDS: dict[str, tuple[Callable[[Dice, str], list[Question]], int]] = {
    "identity": (talk.identity_questions, 300),
    "arithmetic": (arithmetic.questions, 450),
    "facts": (knowledge.fact_questions, 380),
    "words": (knowledge.word_questions, 320),
    "units": (units.questions, 280),
    "strings": (lists.questions, 450),
    "format": (turns.format_questions, 350),
    "follow_up": (turns.follow_up_questions, 300),
    "refusal": (talk.refusal_questions, 170),
    "comparison": (numbers.comparison_questions, 320),
    "sequence": (numbers.sequence_questions, 380),
    "translation": (knowledge.translation_questions, 600),
}
PRETRAINING = (arithmetic, numbers, knowledge, units, talk, turns, stories)


def round_robin(dice: Dice, questions: list[Question], count: int) -> list[Question]:
    """`count` of the questions, no two with the same prompt, as evenly over their tasks as they allow."""
    by_task: dict[str, list[Question]] = {}
    prompts = set()
    for question in dice.shuffled(questions):
        if question.messages[:-1] not in prompts:
            prompts.add(question.messages[:-1])
            by_task.setdefault(question.task, []).append(question)
    pools, chosen = list(by_task.values()), []
    while len(chosen) < count and pools:
        chosen.extend(pool.pop() for pool in pools[: count - len(chosen)])
        pools = [pool for pool in pools if pool]
    return chosen


def sft_rows(seed: int) -> tuple[list[Question], list[Question]]:
    """(training rows, held-out rows), each in random order."""
    training, held_out = [], []
    for place, (kind, (questions, count)) in enumerate(KINDS.items()):
        for language in LANGUAGES:
            dice = Dice(seed, f"{kind}/{language}")
            rows = questions(dice, language)
            # an odd number per kind: the languages take turns in having one more
            share = HELD_OUT_PER_KIND // 2 + (place + LANGUAGES.index(language)) % 2
            apart = round_robin(dice, [row for row in rows if row.held_out], share)
            assert len(apart) == share, f"{kind}/{language}: only {len(apart)} questions can be held out"
            held_out += apart
            training += round_robin(dice, [row for row in rows if not row.held_out], count)
    for language in LANGUAGES:
        training += arithmetic.thinking_questions(Dice(seed, f"thinking/{language}"), language, THINKING_PER_LANGUAGE)
    return Dice(seed, "training order").shuffled(training), Dice(seed, "held-out order").shuffled(held_out)


def pretraining_rows(seed: int) -> list[str]:
    documents = []
    for module in PRETRAINING:
        documents += module.pretraining(Dice(seed, f"pretraining/{module.__name__}"))
    documents += exercises.pretraining(seed, [(kind, questions) for kind, (questions, _) in KINDS.items()])
    return Dice(seed, "pretraining order").shuffled(documents)


def as_json(question: Question) -> dict:
    """The row as it is written: messages, and beside them what the row is for."""
    messages = [{"role": role, "content": content} for role, content in question.messages]
    if question.reasoning:
        messages[-1]["reasoning_content"] = question.reasoning
    return {"conversations": messages, "kind": question.kind, "language": question.language}


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def print_counts(training: list[Question], held_out: list[Question]) -> None:
    print(f"{'kind':<12}{'training en':>13}{'zh':>6}{'held out en':>14}{'zh':>6}")
    for kind in [*KINDS, ""]:
        counts = [
            sum(kind in ("", row.kind) and row.language == language for row in rows)
            for rows in (training, held_out)
            for language in LANGUAGES
        ]
        print(f"{kind or 'all':<12}{counts[0]:>13}{counts[1]:>6}{counts[2]:>14}{counts[3]:>6}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write pretrain_demo.jsonl, sft_demo.jsonl and sft_demo_heldout.jsonl.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--seed", type=int, default=20, help="another seed chooses other rows; what is held out stays held out"
    )
    parser.add_argument("--out_dir", type=Path, default=HERE, help="folder to write the three files to")
    arguments = parser.parse_args()
    try:
        arguments.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out_dir {arguments.out_dir}: {error.strerror}")

    documents = pretraining_rows(arguments.seed)
    training, held_out = sft_rows(arguments.seed)
    write_jsonl(arguments.out_dir / "pretrain_demo.jsonl", ({"text": text} for text in documents))
    write_jsonl(arguments.out_dir / "sft_demo.jsonl", map(as_json, training))
    write_jsonl(arguments.out_dir / "sft_demo_heldout.jsonl", map(as_json, held_out))
    print_counts(training, held_out)
    size = (arguments.out_dir / "pretrain_demo.jsonl").stat().st_size
    print(f"\npretraining text: {len(documents)} documents, {size / 1e6:.2f} MB; written to {arguments.out_dir}")


if __name__ == "__main__":
    main()
