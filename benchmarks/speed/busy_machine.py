"""How much slower a training command gets when other processes keep every core busy.

The command is ``examples/digits.py --steps 60``, whole and in a process of its own, with the number of
threads that the example chooses by itself. It runs in turn on an idle machine and beside one busy process
per core. A fair scheduler then gives it half of the machine, so it should take about twice as long. The
bound on the ratio is 2.5::

    python -m benchmarks.speed.busy_machine --json busy_machine.json

Start it on an idle machine. The work of other processes is measured before each command and reported. The
exit status is 1 if the ratio misses the bound.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import QUIET, THREAD_SETTINGS, busy_cores, environment
from benchmarks.tools.neighbours import neighbours
from benchmarks.tools.options import add_run_options, make_parser, whole
from benchmarks.tools.records import read_json, write_json
from benchmarks.tools.runs import SMOKE, run_example
from benchmarks.tools.timing import ratio, report_bounds

BOUND = 2.5
EXPECTED = {"idle": 1.0, "busy": 2.5}  # minutes of one command; with less time left it is not started
RATIO = "busy / idle"
MEASURED = ("seconds", "training_seconds", "threads", "cores_used_by_others")


def measure(kind: str, turn: int, args: argparse.Namespace, deadline: Deadline) -> dict[str, Any]:
    """One command, found or run; an empty dictionary if the time does not allow it."""
    folder = args.runs / (f"digits_{args.steps}{'_smoke' if args.smoke_test else ''}") / f"{kind}_{turn}"
    found = read_json(folder / "command.json")
    if found or not deadline.allows(EXPECTED[kind]):
        return found
    others = busy_cores()
    options = list(SMOKE) if args.smoke_test else ["--steps", str(args.steps)]
    with neighbours(args.processes if kind == "busy" else 0):
        code, seconds = run_example("digits", options, folder, minutes=deadline.left(), unset=THREAD_SETTINGS)
    if code is None:
        return {}
    if code:
        raise SystemExit(f"examples/digits.py ended with exit status {code}, see {folder / 'output.txt'}")
    metrics = read_json(folder / "metrics.json")
    record = {
        "seconds": seconds,
        "training_seconds": metrics["seconds"],
        "threads": metrics["settings"]["threads"],
        "cores_used_by_others": others,
    }
    write_json(folder / "command.json", record)
    return record


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=whole, default=60, help="of training (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=whole, default=3, help="commands of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=whole, default=os.cpu_count() or 1, help="busy ones (default: one per core)"
    )
    add_run_options(parser, "busy_machine")
    args = parser.parse_args()
    if args.smoke_test:
        args.repeats, args.processes = 1, 1
    return args


def main() -> int:
    args = parse()
    deadline = Deadline(args.minutes)
    commands: dict[str, list[dict[str, Any]]] = {"idle": [], "busy": []}
    for turn in range(args.repeats):
        for kind, done in commands.items():
            record = measure(kind, turn, args, deadline)
            if record:
                done.append(record)
                others = record["cores_used_by_others"]
                warning = f"; NOT IDLE, others use {others:.1f} cores" if (others or 0.0) > QUIET else ""
                print(f"{kind}: {record['seconds']:.1f} s, threads {record['threads']}{warning}", flush=True)

    complete = all(len(done) == args.repeats for done in commands.values())
    measured = {key: {kind: [r[key] for r in done] for kind, done in commands.items()} for key in MEASURED}
    figures: dict[str, object] = {}
    status = 0
    if complete:
        found = ratio(measured["seconds"]["busy"], measured["seconds"]["idle"])
        print(f"{RATIO}: {found}")
        status = 0 if args.smoke_test else report_bounds({RATIO: (found.value, BOUND)})
        figures = {"ratios": {RATIO: asdict(found)}, "bounds": {RATIO: BOUND}, "kept": status == 0}
    write_json(
        args.json,
        {
            "benchmark": "busy_machine",
            "environment": environment(packages=("lightning",)),
            "settings": {
                "command": f"examples/digits.py --steps {args.steps}",
                "busy_processes": args.processes,
                "repeats": args.repeats,
                "smoke_test": args.smoke_test,
            },
            **measured,
            **figures,
            "complete": complete,
        },
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
