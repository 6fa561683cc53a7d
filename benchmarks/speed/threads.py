"""Training steps per second of the digits model: by threads, OpenMP's way to wait, and other work.

A step is the forward and backward pass and the update of the preset ``DIGITS``, on the batches that the
preset trains with. The steps within a fixed time are counted with one and two threads. Threads wait in
OpenMP's own way, or sleep at once (``OMP_WAIT_POLICY=PASSIVE``), or spin briefly and then sleep
(``GOMP_SPINCOUNT=10000`` besides, as in the examples). Each count is made

* on an idle machine,
* beside a light neighbour: one process that computes for a fifth of the time,
* on a busy machine: beside one process per core that computes all the time.

OpenMP reads these variables when it is loaded, so each count is made in a process of its own. There is no
bound::

    python -m benchmarks.speed.threads --json threads.json

Start it on an idle machine. The work of other processes is measured before each count and reported.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch

import pyro_scnf as scnf
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import QUIET, THREAD_SETTINGS, busy_cores, environment
from benchmarks.tools.neighbours import neighbours
from benchmarks.tools.options import add_run_options, make_parser, positive, whole
from benchmarks.tools.records import read_json, write_json
from benchmarks.tools.runs import ROOT

THREADS = (1, 2)
POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "brief spin": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},
}
# Number of neighbours, and the share of the time for which each computes.
LOADS = {"idle": (0, 0.0), "light": (1, 0.2), "busy": (os.cpu_count() or 1, 1.0)}
WARMUP = 3  # steps
START = 1.0  # minutes that a process may need before it counts


def count_steps(threads: int, seconds: float) -> dict[str, float]:
    """Train the digits model for ``seconds``, after a few steps of warm-up: steps, and seconds taken."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    preset = scnf.presets.DIGITS.with_graph(None)
    data = scnf.datasets.digits(labels_per_class=10, seed=0).hold_out(100)
    model = preset.make_model(data)
    loss_of = scnf.elbo(model)
    (x, y), unlabelled = data.labelled, data.unlabelled
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.optimisation.learning_rate)

    def step() -> None:
        rows = torch.randint(len(unlabelled), (preset.batch_size,))
        optimizer.zero_grad()
        loss = loss_of(preset.augment.labelled(x), y, preset.augment(unlabelled[rows]))
        (loss / (len(x) + len(rows))).backward()
        optimizer.step()

    for _ in range(WARMUP):
        step()
    start = time.perf_counter()
    steps = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        steps += 1
    return {"steps": steps, "seconds": elapsed}


def measure(load: str, threads: int, policy: str, seconds: float, minutes: float | None) -> dict[str, Any]:
    """Count steps in a process of its own; an empty dictionary if ``minutes`` were too few."""
    variables = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    variables |= POLICIES[policy]
    command = [sys.executable, "-m", "benchmarks.speed.threads"]
    command += ["--count", str(threads), "--seconds", str(seconds)]
    others = busy_cores()
    with neighbours(*LOADS[load]):
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                text=True,
                timeout=None if minutes is None else 60 * minutes,
            )
        except subprocess.TimeoutExpired:
            return {}
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])}: failed with exit status {done.returncode}")
    return {**json.loads(done.stdout.splitlines()[-1]), "cores_used_by_others": others}


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=positive, default=10.0, help="of each count (default: %(default)s)")
    parser.add_argument("--count", type=whole, metavar="THREADS", help="make one count here and print it")
    add_run_options(parser, "threads")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.count is not None:
        print(json.dumps(count_steps(args.count, args.seconds)))
        return 0
    cells = list(itertools.product(LOADS, THREADS, POLICIES))
    if args.smoke_test:
        args.seconds, cells = 0.2, [("light", 1, "brief spin")]
    deadline = Deadline(args.minutes)
    speeds: dict[str, dict[str, float]] = {load: {} for load in LOADS}
    others: dict[str, dict[str, float | None]] = {load: {} for load in LOADS}
    print(f"{'load':8}{'threads':>8}  {'waiting':18}{'steps/s':>8}")
    for load, threads, policy in cells:
        path = (
            args.runs
            / f"threads_{args.seconds:g}_seconds"
            / f"{load}_{threads}_{policy}.json".replace(" ", "_")
        )
        found = read_json(path)
        if not found and deadline.allows(START + args.seconds / 60):
            found = measure(load, threads, policy, args.seconds, deadline.left())
            if found:
                write_json(path, found)
        if found:
            name, used = f"{threads} threads, {policy}", found["cores_used_by_others"]
            speeds[load][name], others[load][name] = found["steps"] / found["seconds"], used
            warning = f"  NOT IDLE, others use {used:.1f} cores" if (used or 0.0) > QUIET else ""
            print(f"{load:8}{threads:8}  {policy:18}{speeds[load][name]:8.2f}{warning}", flush=True)
    write_json(
        args.json,
        {
            "benchmark": "threads",
            "environment": environment(),
            "settings": {
                "model": "preset DIGITS",
                "seconds": args.seconds,
                "neighbours": {load: {"processes": n, "share": share} for load, (n, share) in LOADS.items()},
                "smoke_test": args.smoke_test,
            },
            "steps_per_second": speeds,
            "cores_used_by_others": others,
            "complete": sum(map(len, speeds.values())) == len(cells),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
