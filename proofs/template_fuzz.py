"""Attacks chat templates with conversations that spell control tokens, whole and in parts, in every role and field.

    python proofs/template_fuzz.py --cases 10000 [--seed 0] [--minimind FOLDER] \\
        [--json proofs/results/template_fuzz.json]

For each case (proofs/template_attacks.py):

1. The control tokens are those of the same conversation without the attack, and each supervised stretch is one answer
   with one end of turn.
2. The ids decode to exactly what the template renders.
3. Each supervised turn follows the ids that a chat shows the model at that point.
4. A row that cannot be encoded in this way is refused with a UserError.

A harmless conversation is never refused because of its text. If a template refuses the shape of a conversation (tools,
say, or a system turn), the attack takes another shape. The cases rotate through the bundled templates, MiniMind-3's
(FOLDER holds its tokenizer) and the supported ones of TRL's package. Exits with status 1 if anything failed.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from template_attacks import Subject, check_attack, make_attack, make_benign, reason
from templates import all_templates
from tqdm import tqdm

from minimind_sft.errors import UserError, run_program

MAX_SHAPES = 50


class Tally:
    """The outcomes of one template's cases."""

    def __init__(self, name: str, subject: Subject):
        self.name, self.subject = name, subject
        self.counts: Counter = Counter(dict.fromkeys(
            ("cases", "turns", "refused", "template looked", "failed", "benign", "benign refused",
             "shapes passed over"), 0))
        self.reasons: Counter = Counter()
        self.benign_reasons: Counter = Counter()
        self.failures: list[str] = []

    def attack(self, seed: int) -> None:
        """Makes one attack, with the first shape from `seed` on that the template accepts."""
        for shape in range(MAX_SHAPES * seed, MAX_SHAPES * (seed + 1)):
            outcome = check_attack(self.subject, *make_attack(self.subject, shape))
            if not outcome.refused_shape:
                break
            self.counts["shapes passed over"] += 1
        self.counts["cases"] += 1
        self.counts["turns"] += outcome.turns
        self.counts["refused"] += outcome.refused is not None
        self.counts["template looked"] += outcome.looked_for
        self.counts["failed"] += bool(outcome.problems)
        self.reasons.update([outcome.refused] if outcome.refused else [])
        self.failures += [f"{self.name}, seed {shape}: {problem}" for problem in outcome.problems[:1]]

    def try_benign(self, seed: int) -> None:
        """Checks that a harmless text is accepted; a template may refuse a shape, but not such a text."""
        self.counts["benign"] += 1
        try:
            self.subject.template.encode(make_benign(seed))
        except UserError as error:
            self.counts["benign refused"] += 1
            self.benign_reasons[reason(error)] += 1
            if "spells control tokens" in str(error):
                self.counts["failed"] += 1
                self.failures.append(f"{self.name}, benign seed {seed}: {reason(error)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="conversations in all (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minimind", type=Path, metavar="FOLDER", help="folder with MiniMind-3's tokenizer")
    parser.add_argument("--only", metavar="NAME", help="only templates whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    arguments = parser.parse_args()
    tallies = fuzz(arguments)
    print_table(tallies)
    failures = [failure for tally in tallies for failure in tally.failures]
    print(*failures[:20], sep="\n")
    if arguments.json:
        write_json(arguments, tallies)
    return 1 if failures else 0


def fuzz(arguments: argparse.Namespace) -> list[Tally]:
    tallies = []
    for named in all_templates(arguments.minimind):
        if arguments.only is None or arguments.only in named.name:
            try:
                tallies.append(Tally(named.name, Subject(named.load())))
            except UserError:  # proofs/template_parity.py prints which and why
                continue
    for case in tqdm(range(arguments.cases), unit="case", mininterval=1):
        tally, seed = tallies[case % len(tallies)], arguments.seed + case
        tally.attack(seed)
        if case % 5 == 0:
            tally.try_benign(seed)
    return tallies


def print_table(tallies: list[Tally]) -> None:
    columns = list(tallies[0].counts)
    width = max(len(tally.name) for tally in tallies)
    print(f"| {'template':{width}} | " + " | ".join(columns) + " |")
    print(f"|{'-' * (width + 2)}|" + "|".join("-" * (len(column) + 2) for column in columns) + "|")
    for name, counts in [*((tally.name, tally.counts) for tally in tallies),
                         ("all", sum((tally.counts for tally in tallies), Counter()))]:
        print(f"| {name:{width}} | " + " | ".join(f"{counts[column]:{len(column)}}" for column in columns) + " |")
    for what, name in (("attacks", "reasons"), ("benign conversations", "benign_reasons")):
        for why, count in sum((getattr(tally, name) for tally in tallies), Counter()).most_common():
            print(f"{what} refused {count} times: {why}")


def write_json(arguments: argparse.Namespace, tallies: list[Tally]) -> None:
    content: dict[str, Any] = {
        "cases": arguments.cases, "seed": arguments.seed,
        "all": dict(sum((tally.counts for tally in tallies), Counter())),
        "refused": dict(sum((tally.reasons for tally in tallies), Counter()).most_common()),
        "benign refused": dict(sum((tally.benign_reasons for tally in tallies), Counter()).most_common()),
        "templates": {tally.name: dict(tally.counts) for tally in tallies},
        "failures": [failure for tally in tallies for failure in tally.failures]}
    arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
