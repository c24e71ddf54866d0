import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hostile.programs import Server
from hostile.tries import Outcome, Try, judge
from programs import PATIENCE

from minimind_sft.paths import REPOSITORY

PROGRAM = r"""
import os, sys, time
what = sys.argv[1]
if what == "traceback": raise KeyError("x")
if what == "timeout": time.sleep(1e6)
if what == "crash": os.abort()
if what == "memory": kept = bytearray(300 * 2**20); print(sum(kept[::4096]))
if what == "escape": print("a\x1b[2Jb")
if what == "refused": sys.exit(print("error: x.jsonl:1: not JSON", file=sys.stderr) or 2)
if what == "two lines": sys.exit(print("error: a\nerror: b", file=sys.stderr) or 2)
if what == "damaged": open(sys.argv[2], "w").write("changed")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_each_outcome_is_told_from_the_others(tmp_path):
    """Runs a program that does each of these."""
    (tmp_path / "odd.py").write_text(PROGRAM)
    (tmp_path / "kept.txt").write_text("as it was")
    (tmp_path / "minimind_sft").mkdir()
    (tmp_path / "minimind_sft" / "__init__.py").touch()
    server, kept = Server(tmp_path), tmp_path / "kept.txt"
    seen = {}
    for what, expected in [("traceback", "either"), ("crash", "either"), ("memory", "either"), ("escape", "either"),
                           ("refused", "refused"), ("refused", "accepted"), ("two lines", "refused"),
                           ("nothing", "refused"), ("nothing", "accepted"), ("timeout", "either")]:
        one = Try(what, ["odd.py", what], expected, seconds=1 if what == "timeout" else PATIENCE, memory_mib=200)
        seen[what, expected] = judge(one, server.run(one, tmp_path), ())[0]
    one = Try("damaged", ["odd.py", "damaged", str(kept)], "accepted", seconds=PATIENCE)
    assert judge(one, server.run(one, tmp_path), [kept])[0] == "damaged" and kept.read_text() == "changed"
    server.close()
    assert seen == {
        ("traceback", "either"): "traceback", ("crash", "either"): "crash", ("memory", "either"): "memory",
        ("escape", "either"): "escape", ("refused", "refused"): "refused",
        ("refused", "accepted"): "wrongly refused", ("two lines", "refused"): "no clear line",
        ("nothing", "refused"): "silent", ("nothing", "accepted"): "accepted", ("timeout", "either"): "timeout"}


def test_an_accepted_try_is_checked():
    outcome = Outcome(0, "loss 3.1", "", 1.0, 10.0, Path())
    one = Try("x", ["odd.py"], "accepted", check=lambda outcome: None if "loss" in outcome.stdout else "no loss")
    assert judge(one, outcome, ()) == ("accepted", "")
    assert judge(one, replace(outcome, stdout=""), ()) == ("silent", "no loss")
    killed = Outcome(-signal.SIGKILL, "", "", 1.0, 10.0, Path())
    assert judge(one, killed, ()) == ("crash", "signal 9")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_few_hostile_inputs_of_each_kind():
    program = REPOSITORY / "proofs" / "hostile_inputs.py"
    done = subprocess.run([sys.executable, program, "--count", "3", "--jobs", "1", "--patient"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
