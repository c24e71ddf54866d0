"""Proves that a run on two machines survives a cut cable: both ends stop in time, and the run can be resumed.

    sudo python proofs/two_machines.py --cuts 2 --json proofs/results/two_machines.json

The machines are two network namespaces of this one, joined by a pair of virtual Ethernet devices; this needs root and
`ip` (iproute2). Each runs torchrun, which finds the other through its c10d rendezvous. The second machine has its own
`--save_dir`, as if no disk were shared: with DDP all files are the main rank's. A run that was cut and resumed must end
with the bits of an undisturbed one, whose ranks are on one machine. Exits with status 1 if it does not.

The ranks stop after --rank_timeout. On the machine that does not host the rendezvous, torchrun polls it every few
seconds and waits for an answer until TCP gives up. On Linux that takes a quarter of an hour by default, and half a
minute with net.ipv4.tcp_retries2 = 6, as set here.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from kill_and_resume import COMMON, outcome, steps_logged
from rank_bench import Bench, Job

from minimind_sft.errors import UserError, run_program
from minimind_sft.paths import REPOSITORY

RANK_TIMEOUT = 10
LIMIT = 60.0
"""Seconds after the cut within which both ends must have stopped."""
PATIENCE = 600.0
TCP_RETRIES = 6
FLAGS = ["--epochs", "20", "--dtype", "float32"]
MACHINES = (f"minimind-{os.getpid()}-a", f"minimind-{os.getpid()}-b")
ADDRESSES = ("10.99.7.1", "10.99.7.2")
DEVICE = "cable"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=1, help="how often to cut the cable (default: 1)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = cut_and_resume(Path(folder), arguments.cuts)
    print("\n".join(f"{name.replace('_', ' '):<48} {value}" for name, value in figures.items()))
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/two_machines.py", *sys.argv[1:]]),
                  "torch": torch.__version__, **figures}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(figures["differs"] != [] or figures["seconds_until_both_stopped"] > LIMIT)


def can_run() -> bool:
    """Returns whether this process may create network namespaces, which root may not in every container."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with two_machines():
            return True
    except UserError:
        return False


def cut_and_resume(folder: Path, cuts: int) -> dict:
    """Trains on two machines, cut `cuts` times, and with two ranks of this one, undisturbed; returns the figures.

    Raises:
        UserError: if network namespaces cannot be created here, or a run ends in an unexpected way.
    """
    if not can_run():
        raise UserError("needs root and the ip command, to make two network namespaces")
    bench = Bench(folder, random.Random(0))
    data, slowest = bench.data, 0.0
    with two_machines():
        for cut in range(1, cuts + 1):
            agents = launch(data, folder / "cut")
            wait_for_step(folder / "cut", agents, cut * 60 // (cuts + 1))
            ip("-n", MACHINES[0], "link", "set", DEVICE, "down")
            start = time.monotonic()
            if cut == 1:  # meanwhile both ends do nothing but wait
                undisturbed = Job(bench, folder / "whole", 2, FLAGS)
            wait_for_ends(agents)
            slowest = max(slowest, time.monotonic() - start)
            connect()
        finish(launch(data, folder / "cut"), folder / "cut")
    bench.expect([0, 0], undisturbed.end())
    whole, found = outcome(folder / "whole"), outcome(folder / "cut")
    elsewhere = [str(path.relative_to(folder)) for path in folder.glob("*-b/*") if path.name != "prepared"]
    if not found or elsewhere:
        raise UserError(f"the main rank's machine has {len(found)} files; the other one has {elsewhere}")
    resumed = re.findall(r"resume +\S*step-\d{8}", (folder / "cut.0.log").read_text())
    if len(resumed) != cuts:
        raise UserError(f"went on from a resume state {len(resumed)} times, not {cuts}: {said(folder / 'cut')}")
    return {"cuts": cuts, "seconds_until_both_stopped": round(slowest, 1), "rank_timeout": RANK_TIMEOUT,
            "tcp_retries2": TCP_RETRIES,
            "differs": [name for name in sorted({*whole, *found}) if whole.get(name) != found.get(name)]}


@contextmanager
def two_machines() -> Iterator[None]:
    """Creates two namespaces, each with one end of a virtual cable; removes them at the end of the block."""
    remove_machines()
    try:
        for machine in MACHINES:
            ip("netns", "add", machine)
            ip("-n", machine, "link", "set", "lo", "up")
        ip("link", "add", DEVICE, "netns", MACHINES[0], "type", "veth", "peer", "name", DEVICE, "netns", MACHINES[1])
        for machine, address in zip(MACHINES, ADDRESSES, strict=True):
            ip("-n", machine, "address", "add", f"{address}/24", "dev", DEVICE)
            set_tcp_retries = f"echo {TCP_RETRIES} > /proc/sys/net/ipv4/tcp_retries2"
            ip("netns", "exec", machine, "sh", "-c", set_tcp_retries)
        connect()
        yield
    finally:
        remove_machines()


def connect() -> None:
    for machine in MACHINES:
        ip("-n", machine, "link", "set", DEVICE, "up")


def wait_for_ends(agents: list[subprocess.Popen]) -> None:
    for agent in agents:
        if agent.wait(PATIENCE) == 0:
            raise UserError("a machine that was cut off ended with status 0")


def remove_machines() -> None:
    for machine in MACHINES:
        subprocess.run(["ip", "netns", "delete", machine], capture_output=True)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def launch(data: Path, out: Path) -> list[subprocess.Popen]:
    """Starts, on both machines, the command that docs/many_machines.md gives."""
    agents = []
    for number, (machine, address) in enumerate(zip(MACHINES, ADDRESSES, strict=True)):
        rendezvous = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "minimind",
                      "--rdzv-endpoint", f"{ADDRESSES[0]}:29400",
                      # Both namespaces share a host name, so each has to be given its own address.
                      "--rdzv-conf", f"is_host={int(number == 0)},read_timeout=20", "--local-addr", address]
        command = ["ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run", *rendezvous,
                   str(REPOSITORY / "trainer/train_full_sft.py"), *COMMON, *FLAGS, "--rank_timeout", str(RANK_TIMEOUT),
                   "--data_path", str(data), "--save_dir", str(out if number == 0 else f"{out}-b")]
        log = out.with_suffix(f".{number}.log").open("a")
        agents.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                       env={**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}))
    return agents


def wait_for_step(out: Path, agents: list[subprocess.Popen], step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while steps_logged(out / "full_sft_32_metrics.jsonl") < step:
        if time.monotonic() > deadline or any(agent.poll() is not None for agent in agents):
            raise UserError(f"step {step} was never reached: {said(out)}")
        time.sleep(0.005)


def finish(agents: list[subprocess.Popen], out: Path) -> None:
    statuses = [agent.wait(PATIENCE) for agent in agents]
    if statuses != [0, 0]:
        raise UserError(f"ended with {statuses}: {said(out)}")


def said(out: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in sorted(out.parent.glob(f"{out.name}.?.log")))


if __name__ == "__main__":
    run_program(main)
