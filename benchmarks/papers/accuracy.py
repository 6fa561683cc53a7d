"""Errors and likelihoods of the examples over several seeds: mean, standard deviation, every run.

    python -m benchmarks.papers.accuracy --seeds 5 --json accuracy.json
    python -m benchmarks.papers.accuracy --runs-of "toy --data moons --prior gmm" --seeds 5

Each run is an example in a process of its own, as a user starts it. Finished runs are found in ``--runs``
and not repeated.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import add_run_options, make_parser, whole
from benchmarks.tools.records import write_json
from benchmarks.tools.runs import SMOKE, Outcome, find, train

COMMANDS = ("toy --data moons", "toy --data circles", "digits")
EXPECTED = 3.0  # minutes of one run of an example that cannot be cut off
PACKAGES = ("lightning", "scikit-learn")


def folder_of(command: str, seed: int, args: argparse.Namespace) -> Path:
    """Where a run is kept."""
    kind = f"{args.device}{'_smoke' if args.smoke_test else ''}"
    return args.runs / kind / command.replace("--", "").replace(" ", "-") / str(seed)


def run(command: str, seed: int, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    """One run of an example, found or trained as far as the deadline allows."""
    example, *options = shlex.split(command)
    options += ["--seed", str(seed), "--device", args.device]
    if args.data_root is not None and example == "mnist":
        options += ["--data-root", str(args.data_root)]
    if args.smoke_test:
        options += SMOKE
    return train(example, options, folder_of(command, seed, args), deadline, expected=EXPECTED)


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and single values of every number in the records, nested ones too."""
    summary: dict[str, Any] = {}
    for key, value in records[0].items():
        values = [record[key] for record in records]
        if isinstance(value, dict):
            if key not in ("settings", "versions"):
                summary[key] = summarise(values)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            spread = stdev(values) if len(values) > 1 else 0.0
            summary[key] = {"mean": mean(values), "std": spread, "runs": values}
    return summary


def show(summary: Mapping[str, Any], indent: int = 2) -> None:
    for key, value in summary.items():
        if "runs" in value:
            print(f"{' ' * indent}{key:28s} {value['mean']:9.3f} ± {value['std']:.3f}")
        else:
            print(f"{' ' * indent}{key}")
            show(value, indent + 2)


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--runs-of",
        nargs="+",
        metavar="COMMAND",
        default=COMMANDS,
        help=f"examples with their options, each in quotes (default: {', '.join(COMMANDS)})",
    )
    parser.add_argument("--seeds", type=whole, default=5)
    parser.add_argument("--parallel", type=whole, default=1, help="runs at a time; each then takes longer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-root", type=Path, help="for the example mnist")
    add_run_options(parser, "accuracy")
    args = parser.parse_args()
    if args.smoke_test:
        args.seeds = 1
    return args


def main() -> int:
    args = parse()
    deadline = Deadline(args.minutes)
    outcomes = {
        command: [find(folder_of(command, seed, args)) for seed in range(args.seeds)]
        for command in args.runs_of
    }
    for command, found in outcomes.items():
        with ThreadPoolExecutor(args.parallel) as pool:
            found[:] = pool.map(lambda seed, c=command: run(c, seed, args, deadline), range(args.seeds))
        write_json(args.json, record(outcomes, args))
        finished = metrics_of(found)
        print(f"{command}: {len(finished)} of {args.seeds} seeds")
        if finished:
            show(summarise(finished))
    return int(any(outcome.failed for found in outcomes.values() for outcome in found))


def metrics_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Metrics of the finished runs."""
    return [outcome.metrics for outcome in outcomes if outcome.finished and outcome.metrics]


def record(outcomes: Mapping[str, Sequence[Outcome]], args: argparse.Namespace) -> dict[str, object]:
    """What the result file holds."""
    finished = {command: metrics_of(found) for command, found in outcomes.items()}
    done = {command: metrics for command, metrics in finished.items() if metrics}
    threads = {
        command: [each["settings"]["threads"] for each in metrics] for command, metrics in done.items()
    }
    return {
        "benchmark": "accuracy",
        "environment": environment(args.device, PACKAGES),
        "settings": {"seeds": args.seeds, "smoke_test": args.smoke_test},
        "parallel": args.parallel,
        "threads": threads,
        "results": {command: summarise(metrics) for command, metrics in done.items()},
        "complete": all(outcome.finished for found in outcomes.values() for outcome in found),
    }


if __name__ == "__main__":
    sys.exit(main())
