"""Attacks chat templates with conversations that spell control tokens, whole and in parts, in every role and field.

    python proofs/template_fuzz.py --cases 20000 [--seed 0] [--transforming 200] [--minimind FOLDER] \\
        [--json proofs/results/template_fuzz.json]

For each case (proofs/template_attacks.py):

1. The control tokens are those of the same conversation without the attack, and each supervised stretch is one answer
   with one end of turn.
2. The ids decode to exactly what the template renders.
3. Each supervised turn follows the ids that a chat shows the model at that point.
4. A row that cannot be encoded in this way is refused with a UserError.

A harmless conversation is never refused because of its text, and every control token that a template spells in it is
one. If a template refuses the shape of a conversation (tools, say, or a system turn), the attack takes another shape.

The cases rotate through the bundled templates, MiniMind-3's (FOLDER holds its tokenizer), the supported ones of TRL's
package, and generated ones that transform the text of the data (proofs/transforming_templates.py): there, attacks are
texts that become control tokens once they are transformed. Exits with status 1 if anything failed.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from template_attacks import Subject, check_attack, check_benign, make_attack
from templates import all_templates
from tqdm import tqdm
from transforming_templates import TransformingSubject, make_template

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
        refused, problem = check_benign(self.subject, seed)
        if refused:
            self.counts["benign refused"] += 1
            self.benign_reasons[refused] += 1
        if problem:
            self.counts["failed"] += 1
            self.failures.append(f"{self.name}, benign seed {seed}: {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="conversations in all (default: 20000)")
    parser.add_argument("--transforming", type=int, default=200, metavar="COUNT",
                        help="generated templates that transform the data (default: 200)")
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
    for template in map(make_template, range(arguments.transforming)):
        if arguments.only is None or arguments.only in template.named.name:
            try:
                tallies.append(Tally(template.named.name, TransformingSubject(template)))
            except UserError as error:
                print(f"{template.named.name} is refused: {error}")
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
    transforming = [tally for tally in tallies if tally.subject.transforms]
    for name, counts in [*((tally.name, tally.counts) for tally in tallies if not tally.subject.transforms),
                         (f"{len(transforming)} transforming", sum_of(transforming)), ("all", sum_of(tallies))]:
        print(f"| {name:{width}} | " + " | ".join(f"{counts[column]:{len(column)}}" for column in columns) + " |")
    for what, name in (("attacks", "reasons"), ("benign conversations", "benign_reasons")):
        for why, count in sum((getattr(tally, name) for tally in tallies), Counter()).most_common():
            print(f"{what} refused {count} times: {why}")


def sum_of(tallies: list[Tally]) -> Counter:
    return sum((tally.counts for tally in tallies), Counter())


def write_json(arguments: argparse.Namespace, tallies: list[Tally]) -> None:
    content: dict[str, Any] = {
        "cases": arguments.cases, "seed": arguments.seed,
        "transforming templates": sum(tally.subject.transforms for tally in tallies),
        "all": dict(sum_of(tallies)),
        "refused": dict(sum((tally.reasons for tally in tallies), Counter()).most_common()),
        "benign refused": dict(sum((tally.benign_reasons for tally in tallies), Counter()).most_common()),
        "templates": {tally.name: dict(tally.counts) for tally in tallies},
        "failures": [failure for tally in tallies for failure in tally.failures]}
    arguments.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
