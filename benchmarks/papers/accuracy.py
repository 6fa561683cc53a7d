"""Errors and likelihoods of the examples over several seeds: mean, standard deviation, every run.

    python -m benchmarks.papers.accuracy --seeds 5 --json accuracy.json
    python -m benchmarks.papers.accuracy --runs-of "toy --data moons --prior gmm" --seeds 5

Each run is an example in a process of its own, as a user starts it. Finished runs are found in ``--runs``
and not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.tools.commands import add_command_options, folder_of, run
from benchmarks.tools.deadline import Deadline
from benchmarks.tools.machine import environment
from benchmarks.tools.options import make_parser, whole
from benchmarks.tools.records import write_json
from benchmarks.tools.runs import Outcome, find
from benchmarks.tools.summaries import show, summarise

COMMANDS = ("toy --data moons", "toy --data circles", "digits")
PACKAGES = ("lightning", "scikit-learn")


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_command_options(parser, COMMANDS, seeds=5, runs="accuracy")
    parser.add_argument("--parallel", type=whole, default=1, help="runs at a time; each then takes longer")
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
