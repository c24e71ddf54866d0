"""Tries thousands of hostile inputs on all programs: each must be refused in one line, or accepted and right.

    python proofs/hostile_inputs.py --json proofs/results/hostile_inputs.json
    python proofs/hostile_inputs.py --kinds rows flags --count 20       # two kinds, 20 tries each
    python proofs/hostile_inputs.py --project ../older                  # the same inputs for another checkout

Prints a line for each try that went wrong, and a table of the kinds with their outcomes (proofs/hostile/tries.py says
what they mean). Exits with status 1 if anything went wrong.
"""

import argparse
import importlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from hostile.programs import Server, own_server
from hostile.tries import RIGHT, WRONG, Outcome, Try, judge, state_of
from tqdm import tqdm

from minimind_sft.paths import REPOSITORY
from minimind_sft.terminal import aligned

SERVING = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
"""Optional packages that the server needs."""
COUNT = 150
"""Tries of a kind, unless --count says otherwise; a kind may have fewer."""
LONGEST_REASON = 200
PATIENT = {"seconds": 30, "memory_mib": 2}
"""Factors on the limits of a try with --patient."""


@dataclass
class Tally:
    """The outcomes of one kind."""

    module: str
    kind: str
    verbose: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    peak_mib: float = 0.0
    longest_seconds: float = 0.0
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def add(self, one: Try, outcome: Outcome, damaged: Sequence[Path]) -> None:
        what, reason = judge(one, outcome, damaged)
        self.outcomes[what] += 1
        self.peak_mib = max(self.peak_mib, outcome.memory_mib)
        self.longest_seconds = max(self.longest_seconds, outcome.seconds)
        if what in WRONG:
            self.fail(one.name, one.command, what, reason)
        elif self.verbose:
            self.say(one.name, what, reason)

    def fail(self, name: str, command: Sequence[str], what: str, reason: str) -> None:
        self.wrong.append({"name": name, "command": list(map(str, command)), "outcome": what,
                           "reason": reason[:LONGEST_REASON]})
        self.say(name, what, reason)

    def say(self, name: str, what: str, reason: str) -> None:
        tqdm.write(f"{self.module}: {ascii(name)[1:-1]}: {what}: {ascii(reason)[1:-1][:LONGEST_REASON]}")


def try_kind(name: str, arguments: argparse.Namespace, folder: Path, servers: Queue[Server], bar: tqdm) -> Tally:
    """Runs the tries of one kind, each in the folder of the kind, with a server that no other kind uses meanwhile."""
    module = importlib.import_module(f"hostile.{name}")
    tally, server = Tally(name, module.KIND, arguments.verbose), servers.get()
    folder.mkdir()
    dice = random.Random(f"{arguments.seed} {name}")
    try:
        for one in module.tries(folder, dice, arguments.count):
            if arguments.patient:
                one = replace(one, seconds=one.seconds * PATIENT["seconds"],
                              memory_mib=one.memory_mib * PATIENT["memory_mib"])
            before = {path: state_of(path) for path in one.guarded}
            outcome = server.run(one, folder)
            tally.add(one, outcome, [path for path, state in before.items() if state_of(path) != state])
            bar.update()
    finally:
        servers.put(server)
    if not tally.outcomes["accepted"]:
        tally.fail("untouched", [], "nothing accepted", "a kind needs good input as well: what if all were refused?")
    return tally


def table(tallies: Sequence[Tally]) -> list[str]:
    """Returns the lines of the table of kinds and outcomes; outcomes that never came are left out."""
    total = sum((tally.outcomes for tally in tallies), Counter())
    shown = [*RIGHT, *(what for what in WRONG if total[what])]
    rows = [["kind", "tries", *shown, "seconds at most", "MiB at most"]]
    rows += [[tally.kind, str(tally.outcomes.total()), *(str(tally.outcomes[what]) for what in shown),
              f"{tally.longest_seconds:.1f}", f"{tally.peak_mib:.0f}"] for tally in tallies]
    rows.append(["all", str(total.total()), *(str(total[what]) for what in shown),
                 f"{max((tally.longest_seconds for tally in tallies), default=0):.1f}",
                 f"{max((tally.peak_mib for tally in tallies), default=0):.0f}"])
    return aligned(rows, numbers=range(1, len(rows[0])))


def main() -> int:
    folder = Path(__file__).with_name("hostile")
    kinds = sorted(path.stem for path in folder.glob("*.py") if "\nKIND = " in path.read_text(encoding="utf-8"))
    if absent := [name for name in SERVING if find_spec(name) is None]:
        kinds.remove("serving")
        print(f"without serving, which needs {', '.join(absent)}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="modules of proofs/hostile (all)")
    parser.add_argument("--count", type=int, default=COUNT, help="tries of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random part (%(default)s)")
    parser.add_argument("--project", type=Path, default=REPOSITORY, help="the checkout whose programs are tried")
    parser.add_argument("--jobs", type=int, default=2, help="kinds tried at the same time (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print the tries that went right as well")
    parser.add_argument("--patient", action="store_true", help="for a busy or unknown machine: thirty times the time, "
                        "and twice the memory")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    arguments.project = arguments.project.resolve()
    torch.set_num_threads(1)
    servers: Queue[Server] = Queue()
    for number in range(arguments.jobs):
        servers.put(own_server() if arguments.project == REPOSITORY and not number else Server(arguments.project))
    with (tempfile.TemporaryDirectory() as folder, tqdm(unit=" tries", disable=None) as bar,
          ThreadPoolExecutor(arguments.jobs) as pool):
        tallies = list(pool.map(lambda name: try_kind(name, arguments, Path(folder) / name, servers, bar),
                                arguments.kinds))
    print("\n".join(table(tallies)))
    wrong = [one for tally in tallies for one in tally.wrong]
    if arguments.json:
        record = {"command": ["python", "proofs/hostile_inputs.py", *sys.argv[1:]],
                  "kinds": [{"kind": tally.kind, "tries": tally.outcomes.total(), "outcomes": dict(tally.outcomes),
                             "longest_seconds": round(tally.longest_seconds, 1), "peak_mib": round(tally.peak_mib)}
                            for tally in tallies], "wrong": wrong}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
