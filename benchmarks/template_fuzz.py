"""Attacks chat templates with conversations that spell control tokens, whole and in parts, in every role and field.

    python benchmarks/template_fuzz.py --cases 10000 [--seed 0] [--minimind FOLDER] [--json docs/template_fuzz.json]

Per case (benchmarks/template_attacks.py): (i) the control tokens are those of the same conversation about nothing, and
each supervised stretch is one answer with one end of turn; (ii) the ids decode to exactly what the template renders;
(iii) before each supervised turn stand the ids that a chat shows the model there; (iv) a row that cannot be encoded
so is refused as a UserError. Benign conversations of the same shapes are never refused for their text.

The cases go round the templates: the bundled ones, MiniMind-3's (FOLDER holds its tokenizer) and those of TRL's
package that are served. Exits with status 1 if anything failed.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from template_attacks import Outcome, Subject, check_attack, make_attack, make_benign, reason
from templates import all_templates
from tqdm import tqdm

from minimind_sft.errors import UserError, run_program


class Tally:
    """What became of one template's cases."""

    def __init__(self, name: str, subject: Subject):
        self.name, self.subject = name, subject
        self.counts: Counter = Counter(dict.fromkeys(
            ("cases", "encoded", "turns", "refused", "shape refused", "template looked", "benign", "failed"), 0))
        self.reasons: Counter = Counter()
        self.failures: list[str] = []

    def add(self, seed: int, outcome: Outcome) -> None:
        self.counts["cases"] += 1
        self.counts["turns"] += outcome.turns
        self.counts["encoded"] += not (outcome.refused or outcome.refused_shape)
        self.counts["refused"] += outcome.refused is not None
        self.counts["shape refused"] += outcome.refused_shape is not None
        self.counts["template looked"] += outcome.looked_for
        self.counts["failed"] += bool(outcome.problems)
        self.reasons.update(why for why in (outcome.refused, outcome.refused_shape) if why)
        self.failures += [f"{self.name}, seed {seed}: {problem}" for problem in outcome.problems[:1]]

    def add_benign(self, seed: int) -> None:
        self.counts["benign"] += 1
        try:
            self.subject.template.encode(make_benign(seed))
        except UserError as error:
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
            except UserError:  # benchmarks/template_parity.py tells which and why
                continue
    for case in tqdm(range(arguments.cases), unit="case", mininterval=1):
        tally, seed = tallies[case % len(tallies)], arguments.seed + case
        tally.add(seed, check_attack(tally.subject, *make_attack(tally.subject, seed)))
        if case % 5 == 0:
            tally.add_benign(seed)
    return tallies


def print_table(tallies: list[Tally]) -> None:
    columns = list(tallies[0].counts)
    width = max(len(tally.name) for tally in tallies)
    print(f"| {'template':{width}} | " + " | ".join(columns) + " |")
    print(f"|{'-' * (width + 2)}|" + "|".join("-" * (len(column) + 2) for column in columns) + "|")
    for name, counts in [*((tally.name, tally.counts) for tally in tallies),
                         ("all", sum((tally.counts for tally in tallies), Counter()))]:
        print(f"| {name:{width}} | " + " | ".join(f"{counts[column]:{len(column)}}" for column in columns) + " |")
    for why, count in sum((tally.reasons for tally in tallies), Counter()).most_common():
        print(f"refused {count} times: {why}")


def write_json(arguments: argparse.Namespace, tallies: list[Tally]) -> None:
    content: dict[str, Any] = {
        "cases": arguments.cases, "seed": arguments.seed,
        "all": dict(sum((tally.counts for tally in tallies), Counter())),
        "reasons": dict(sum((tally.reasons for tally in tallies), Counter()).most_common()),
        "templates": {tally.name: {**tally.counts, "reasons": dict(tally.reasons)} for tally in tallies},
        "failures": [failure for tally in tallies for failure in tally.failures]}
    arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
